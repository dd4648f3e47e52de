"""Any training: the loop, checkpoints, the run folder, and what may happen to a run from outside."""
