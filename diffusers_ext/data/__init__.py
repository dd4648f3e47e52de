"""Data: rows of a folder, their tensors, and the regenerated fill50k."""
