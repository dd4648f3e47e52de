"""Image-text models: projections trained on frozen towers (LiT, Zhai et al. 2022)."""
