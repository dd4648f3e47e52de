"""Linear heads from sums that add up over sessions: what a mixture is held against, and what may predict in its place.

With x of unit length, G = Σ x xᵀ and Q = Σ x yᵀ over one-hot labels y,

    lda      w_c = S⁻¹ m_c, b_c = −m_cᵀ w_c / 2, S the covariance within classes (streaming LDA, Hayes & Kanan 2020)
    ridge    W = (G + λ ḡ I)⁻¹ Q, ḡ the mean of G's diagonal
    ranpac   ridge on rectified random projections of x (McDonnell et al. 2023, without their tuning of the backbone)

The sums of the first two are those of whitening, so that they cost no memory; ranpac's G has the square of the projections. Where domains shift
all classes alike, one linear map does as well as a mixture or better.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .mixture_judge import Judge
from .mixture_spaces import TiedCovariance
from .randomness import normal

HEADS = {"mixture": (), "lda": ("lda",), "ridge": ("ridge",), "ranpac": ("ranpac",)}
HEADS["auto"] = ("mixture", "lda", "ridge", "ranpac")  # of equals the first
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
SCALE = 10.0  # of ridge's outputs, which lie around 0 and 1, so that a temperature of 10 can make them sharp
CHUNK = 4096  # rows scored at once


class Heads(nn.Module):
    """The linear heads that a classifier's settings ask for, their own sums, and a judge of which one predicts."""

    def __init__(self, settings: Mapping[str, Any], covariance: TiedCovariance):
        super().__init__()
        self.names, self.covariance = HEADS[settings["head"]], [covariance]  # in a list: it is the state's, not ours
        self.dim, self.seed, wide = settings["dim"], settings["seed"], settings["projections"]
        self.projected = TiedCovariance(wide, len(settings["labels"] or [])) if "ranpac" in self.names else None
        self.judge = Judge(len(self.names), RIDGES)
        self._drawn: torch.Tensor | None = None

    @property
    def chosen(self) -> str:
        """What predicts now."""
        return self.names[int(self.judge.chosen)]

    def add(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Count a session's unit features (N, d) of classes (N,) to the sums that are not the covariance's."""
        if self.projected is not None:
            self.projected.add(self.inputs("ranpac", features), classes)

    def drop(self, gone: int) -> None:
        """Forget a class; later ones move up by one."""
        if self.projected is not None:
            self.projected.drop(gone)

    def absorb(self, other: "Heads", places: torch.Tensor) -> None:
        """Add what another holds, whose class i is class places[i] here."""
        if self.projected is not None:
            self.projected.merge(other.projected, places)
        self.judge.merge(other.judge)

    def hear(self, features: torch.Tensor, classes: torch.Tensor, mixture: torch.Tensor) -> dict[str, float]:
        """Let held-out features (N, d) judge, beside the mixture's scores (N, C); return each head's balanced accuracy."""
        scores = []
        for name in self.names:
            ridges = RIDGES if name in ("ridge", "ranpac") else RIDGES[:1]
            views = [mixture if name == "mixture" else self.scores(name, features, each) for each in ridges]
            scores.append(views * (len(RIDGES) // len(views)))
        return dict(zip(self.names, self.judge.hear(scores, classes)))

    def scores(self, name: str, features: torch.Tensor, ridge: float) -> torch.Tensor:
        """Return a head's scores of unit features (N, d), (N, C) float32."""
        return self.predictor(name, ridge)(features)

    def predictor(self, name: str, ridge: float):
        """Return a function from unit features (N, d) to scores (N, C), with what can be computed once already computed."""
        sums = self.projected if name == "ranpac" else self.covariance[0]
        weights, bias = discriminants(sums) if name == "lda" else least_squares(sums, ridge)
        return lambda features: torch.cat([self.inputs(name, part) @ weights + bias for part in features.split(CHUNK)])

    def inputs(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """What a head sees of unit features; the random matrix is drawn anew after loading, never stored."""
        if name != "ranpac":
            return features
        if self._drawn is None:
            shape = (self.dim, len(self.projected.moment))
            self._drawn = normal(self.seed, "projection", [(0, 0)], shape)[0]
        return (features @ self._drawn).relu()


def discriminants(sums: TiedCovariance) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (d, C) and bias (C,), float32, of linear discriminants; a class without data never wins."""
    means = sums.sums / sums.counts.clamp_min(1)[:, None]
    weights = torch.cholesky_solve(means.T, sums.factor())
    bias = torch.where(sums.counts > 0, -0.5 * (means.T * weights).sum(0), -torch.inf)
    return weights.float(), bias.float()


def least_squares(sums: TiedCovariance, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (d, C) and bias (C,), float32, of ridge regression on one-hot labels; a class without data never wins."""
    system = sums.moment.clone()
    system.diagonal().add_(ridge * system.diagonal().mean().clamp_min(1e-12))
    weights = SCALE * torch.cholesky_solve(sums.sums.T, torch.linalg.cholesky(system))
    bias = torch.where(sums.counts > 0, 0.0, -torch.inf)
    return weights.float(), bias.float()
