"""Frozen encoders: pictures and texts as vectors."""
