"""The embedded world: circles whose truth is known, exact measures of them, and the model that ships with the package."""
