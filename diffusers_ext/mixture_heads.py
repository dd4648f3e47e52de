"""Linear heads from the sums that whitening keeps anyway: what a mixture is held against, and what may predict in its place.

With x of unit length, G = Σ x xᵀ and Q = Σ x yᵀ over one-hot labels y, both exact over sessions,

    lda      w_c = S^{-1} m_c, b_c = −m_cᵀ w_c / 2, S the covariance within classes (streaming LDA, Hayes & Kanan 2020)
    ridge    W = (G + λ ḡ I)^{-1} Q, ḡ the mean of G's diagonal

so that they cost no memory. Where domains shift all classes alike, one linear map does as well as a mixture or better. `ranpac` is
ridge on rectified random projections of x (RanPAC, McDonnell et al. 2023, without its tuning of the backbone), and keeps their G and
Q: as many numbers as the square of the projections.
"""

import torch

from .mixture_spaces import TiedCovariance
from .randomness import normal

HEADS = {"mixture": (), "lda": ("lda",), "ridge": ("ridge",), "ranpac": ("ranpac",)}
HEADS["auto"] = ("ranpac", "ridge", "lda", "mixture")  # of equals the last
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
SCALE = 10.0  # of ridge's outputs, which lie around 0 and 1, so that a temperature of 10 can make them sharp

Linear = tuple[torch.Tensor, torch.Tensor]


def projection(dim: int, projections: int, seed: int) -> torch.Tensor:
    """Return RanPAC's random matrix, (dim, projections); it is drawn anew wherever it is needed, and never stored."""
    return normal(seed, "projection", [(0, 0)], (dim, projections))[0]


def linear_head(name: str, covariance: TiedCovariance, ridge: float) -> Linear:
    """Return weights (d, C) and bias (C,), float32, of the scores x W + b of unit features; classes without data get none."""
    if name == "lda":
        means = covariance.sums / covariance.counts.clamp_min(1)[:, None]
        weights = torch.cholesky_solve(means.T, covariance.factor())
        bias = -0.5 * (means.T * weights).sum(0)
    else:
        system = covariance.moment.clone()
        system.diagonal().add_(ridge * system.diagonal().mean().clamp_min(1e-12))
        weights = SCALE * torch.cholesky_solve(covariance.sums.T, torch.linalg.cholesky(system))
        bias = torch.zeros(weights.shape[1], dtype=torch.float64)
    bias[covariance.counts == 0] = -torch.inf
    return weights.float(), bias.float()
