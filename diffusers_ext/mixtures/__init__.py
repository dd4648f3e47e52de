"""A classifier that keeps learning: mixtures of von Mises-Fisher distributions for each class (Xie, Yan & He 2022)."""
