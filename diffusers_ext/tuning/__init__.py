"""A reward, or rankings, change a generator."""
