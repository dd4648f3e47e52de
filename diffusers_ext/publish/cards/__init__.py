"""What the model cards of all methods share. Each method's own card is in its package."""
