"""Conditions: from a picture to its condition, and whether another picture agrees with it."""
