"""Best-of-N: candidates of a prompt, scored, and the best returned; and search over the initial noise."""
