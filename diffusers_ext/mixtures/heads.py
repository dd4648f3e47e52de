"""Linear heads from sums that add up over sessions: what a mixture is held against, and what may predict in its place or with it.

With x of unit length, G = Σ x xᵀ and Q = Σ x yᵀ over one-hot labels y,

    lda      w_c = S⁻¹ m_c, b_c = −m_cᵀ w_c / 2, S the covariance within classes (streaming LDA, Hayes & Kanan 2020)
    ridge    W = (G + λ ḡ I)⁻¹ Q, ḡ the mean of G's diagonal
    ranpac   ridge on rectified random projections of x (McDonnell et al. 2023, without their tuning of the backbone)
    pooled   q τ_m s_m + (1 − q) τ_r s_r, the scores of mixture and ranpac at their temperatures: a product of their probabilities

The sums of the first two are those of whitening, so that they cost no memory; ranpac's G has the square of the projections. Where domains shift
all classes alike, one linear map does as well as a mixture or better; where both err, they err on different samples.

Until there is a jury nothing was fitted. λ is then the one of least generalised cross-validation, from the sums alone,

    GCV(λ) = n ‖Y − X W‖² / (n − tr (G + λ ḡ I)⁻¹ G)²       (Golub, Heath & Wahba 1979)

and "pooled" is the mean of both, the mixture's scores of a row brought to the spread over classes of ranpac's.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..randomness import normal
from .jury import Choice, Jury, verdict
from .spaces import TiedCovariance

LINEAR = ("lda", "ridge", "ranpac")
HEADS: dict[str, tuple[str, ...]] = {name: (name,) for name in ("mixture", *LINEAR, "pooled")}
HEADS["auto"] = tuple(HEADS)  # of equals the first
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
SHARES = (0.5, 0.25, 0.75)  # q, of the mixture in "pooled"
SCALE = 10.0  # of ridge's outputs, which lie around 0 and 1, so that a temperature of 10 can make them sharp
CHUNK = 4096  # rows scored at once

Scores = Callable[[torch.Tensor], torch.Tensor]  # of unit features (N, d): (N, C) float32


class Heads(nn.Module):
    """The heads that a classifier's settings ask for, their own sums, and the choice among them."""

    def __init__(self, settings: Mapping[str, Any], covariance: TiedCovariance | None):
        super().__init__()
        self.names, self.covariance = HEADS[settings["head"]], [covariance]  # in a list: it is the sums', not ours
        self.dim, self.seed, wide = settings["dim"], settings["seed"], settings["projections"]
        linear = [name for name in LINEAR if name in self.names or (name == "ranpac" and "pooled" in self.names)]
        self.linear = nn.ModuleDict({name: Choice(RIDGES[0]) for name in linear})
        self.projected = TiedCovariance(wide, len(settings["labels"] or [])) if "ranpac" in linear else None
        self.choice = Choice(SHARES[0] if self.names == ("pooled",) else 0.0)
        self._drawn: torch.Tensor | None = None

    @property
    def chosen(self) -> str:
        """What predicts now."""
        return self.names[int(self.choice.of)]

    def add(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Count unit features (N, d) of classes (N,) to the sums that are not the covariance's."""
        if self.projected is not None:
            self.projected.add(self.inputs("ranpac", features), classes)

    def drop(self, gone: int) -> None:
        """Forget a class; later ones move up by one."""
        if self.projected is not None:
            self.projected.drop(gone)

    def absorb(self, other: "Heads", places: torch.Tensor) -> None:
        """Add what another holds, whose class i is class places[i] here."""
        if self.projected is not None and other.projected is not None:
            self.projected.merge(other.projected, places)

    def hear(self, jury: Jury, mixture: torch.Tensor, temperature: float) -> dict[str, float]:
        """Let a jury choose, the mixture's scores of it being (J, C); return balanced accuracies."""
        told = jury.classes, jury.weights()
        scaled, found = {"mixture": temperature * mixture}, {"mixture": verdict([mixture], *told)}
        for name, choice in self.linear.items():
            ridges = RIDGES[:1] if name == "lda" else RIDGES
            views = [self.predictor(name, ridge)(jury.features) for ridge in ridges]
            found[name] = chosen = verdict(views, *told)
            choice.take(0, ridges[chosen.view], chosen.temperature)
            scaled[name] = chosen.temperature * views[chosen.view]
        if "pooled" in self.names:
            pools = [share * scaled["mixture"] + (1 - share) * scaled["ranpac"] for share in SHARES]
            found["pooled"] = verdict(pools, *told)
        best = min(self.names, key=lambda name: found[name].loss)
        share = SHARES[found["pooled"].view] if best == "pooled" else 0.0
        self.choice.take(self.names.index(best), share, found[best].temperature)
        return {name: found[name].accuracy for name in self.names}

    def scores(self, mixture: Scores, temperature: float, judged: bool) -> Scores:
        """Return what the chosen head scores with, what can be computed once already computed.

        temperature: the mixture's. judged: whether a jury chose; else ridge and pool do without one, see above.
        """
        if self.chosen == "mixture":
            return mixture
        name = "ranpac" if self.chosen == "pooled" else self.chosen
        linear = self.predictor(name, float(self.linear[name].setting) if judged else self._ridge(name))
        if self.chosen != "pooled":
            return linear
        if not judged:
            return lambda features: evened(mixture(features), linear(features))
        share = float(self.choice.setting)
        of_mixture, of_linear = share * temperature, (1 - share) * float(self.linear[name].temperature)
        return lambda features: of_mixture * mixture(features) + of_linear * linear(features)

    def predictor(self, name: str, ridge: float) -> Scores:
        """Return what a linear head scores with."""
        sums = self._sums(name)
        weights, bias = discriminants(sums) if name == "lda" else least_squares(sums, ridge)
        return lambda features: torch.cat([self.inputs(name, part) @ weights + bias for part in features.split(CHUNK)])

    def _ridge(self, name: str) -> float:
        """Return the ridge of a head that no jury has judged."""
        if name == "lda":
            return RIDGES[0]  # it has none
        sums = self._sums(name)
        return min(reversed(RIDGES), key=lambda ridge: cross_validation(sums, ridge))

    def _sums(self, name: str) -> TiedCovariance:
        """The sums that a linear head is solved from."""
        sums = self.projected if name == "ranpac" else self.covariance[0]
        assert sums is not None, f"{name} has no sums"
        return sums

    def inputs(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """What a head sees of unit features; the random matrix is drawn anew after loading, never stored."""
        if name != "ranpac":
            return features
        if self._drawn is None:
            shape = (self.dim, len(self._sums(name).moment))
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


def cross_validation(sums: TiedCovariance, ridge: float) -> float:
    """Return the generalised cross-validation error of ridge regression, up to a common factor; inf without freedom left."""
    level = ridge * sums.moment.diagonal().mean().clamp_min(1e-12)
    system = sums.moment + level * torch.eye(len(sums.moment), dtype=torch.float64)
    factor, targets, samples = torch.linalg.cholesky(system), sums.sums.T, sums.counts.sum()
    weights = torch.cholesky_solve(targets, factor)
    # ‖Y − XW‖² with XᵀX W = Q − λW
    error = samples - (weights * targets).sum() - level * weights.square().sum()
    freedom = samples - len(system) + level * torch.cholesky_inverse(factor).diagonal().sum()
    return float(error / freedom.square()) if freedom > 0 else math.inf


def evened(mixture: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    """Return the mean of two heads' scores (N, C), the first brought to the second's spread over the classes of each row."""
    wide, narrow = (
        scores.masked_fill(scores.isinf(), 0).std(1, correction=0, keepdim=True) for scores in (mixture, linear)
    )
    highest = mixture.amax(1, keepdim=True)
    return 0.5 * ((mixture - highest) * narrow / wide.clamp_min(1e-12) + linear)
