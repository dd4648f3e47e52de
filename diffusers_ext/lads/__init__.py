"""LADS (Dunlap et al. 2023): a classifier extended to unseen domains by words."""
