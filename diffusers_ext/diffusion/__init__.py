"""The frozen bases and their mathematics: encoders, noise, samplers, adapters."""
