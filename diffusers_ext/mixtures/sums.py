"""What adds up over sessions: mixtures in each space, the covariance, and the sums of linear heads."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .em import Recipe
from .heads import Heads
from .prediction import Predictor
from .scores import ComponentScores
from .spaces import MixtureSpace, TiedCovariance, Whitener

SPACES = {"auto": ("plain", "whitened"), "none": ("plain",), "whiten": ("whitened",)}


class Sums(nn.Module):
    """Classes are places 0 .. C−1. settings: the classifier's configuration; its labels and grown give the sizes of loaded sums."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        self.settings, names = settings, SPACES[settings["transform"]]
        dim, classes, grown = settings["dim"], len(settings["labels"] or []), settings["grown"] or {}
        self.spaces = nn.ModuleDict({name: MixtureSpace(dim, grown.get(name, 0), name == "whitened") for name in names})
        self.covariance = TiedCovariance(dim, classes) if "whitened" in names else None
        self.heads = None if settings["head"] == "mixture" else Heads(settings, self.covariance)

    def whitener(self) -> Whitener | None:
        """The map into the whitened space."""
        return None if self.covariance is None else self.covariance.whitener()

    def learn(self, features: torch.Tensor, classes: torch.Tensor, recipe: Recipe, key: tuple[int, int]) -> None:
        """Expand, learn and reduce by unit features (N, d) of classes (N,), which may be none; key: (seed, session)."""
        if not len(features):  # the jury took the session's only sample
            return
        self._add(features, classes)
        for space in self.spaces.values():
            space.learn(features, classes, self.whitener(), recipe, key)

    def count(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Count samples to the nearest components of their classes, which are known."""
        if len(features):
            self._add(features, classes)
            for space in self.spaces.values():
                space.count(features, classes, self.whitener())

    def drop(self, gone: int) -> None:
        """Forget a class; later ones move up by one."""
        for part in (*self.spaces.values(), self.covariance, self.heads):
            if part is not None:
                part.drop(gone)

    def absorb(self, other: "Sums", places: torch.Tensor, recipe: Recipe) -> None:
        """Add what others hold, whose class i is class places[i] here."""
        if self.covariance is not None and other.covariance is not None:
            self.covariance.merge(other.covariance, places)
        if self.heads is not None and other.heads is not None:
            self.heads.absorb(other.heads, places)
        for name, space in self.spaces.items():
            added = other.spaces[name]
            share = float(added.counts.sum() / (space.counts.sum() + added.counts.sum()).clamp_min(1))
            space.absorb(added, places, share, self.whitener(), recipe)

    def scores(self, space: MixtureSpace, count: int, score: str, shrinkage: float) -> ComponentScores:
        """Lay out a space's mixture for the scores of `count` classes."""
        statistics, weights = space.statistics(self.whitener()), self.settings["weights"]
        return ComponentScores(statistics, float(space.kappa), count, weights, score, shrinkage)

    def predictor(self, space: MixtureSpace, count: int, score: str, shrinkage: float) -> Predictor:
        """Lay out what predicts with a space's mixture."""
        whitener = self.whitener()
        return Predictor(self.scores(space, count, score, shrinkage), lambda features: space.embed(features, whitener))

    def _add(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        for part in (self.covariance, self.heads):
            if part is not None:
                part.add(features, classes)
