"""What a classifier has learnt, in numbers: classes are places 0 .. C−1 here, and everything is a buffer that grows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .mixture_em import Recipe
from .mixture_heads import Heads
from .mixture_judge import SHRINKAGES, Judge, held_out
from .mixture_memory import Exemplars
from .mixture_prediction import Predictor
from .mixture_scores import ComponentScores
from .mixture_spaces import MixtureSpace, TiedCovariance, Whitener

SPACES = {"auto": ("plain", "whitened"), "none": ("plain",), "whiten": ("whitened",)}


class MixtureState(nn.Module):
    """Mixtures of all classes in each space, the covariance, linear heads where they are asked for, the exemplars and the judge.

    settings: the classifier's configuration; labels and grown in it give the sizes of a state that is being loaded. Learning is
    on the CPU and in double precision: moving the module or changing its precision leaves it there.
    """

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        self.settings, names = settings, SPACES[settings["transform"]]
        dim, classes, grown = settings["dim"], len(settings["labels"] or []), settings["grown"] or {}
        self.spaces = nn.ModuleDict({name: MixtureSpace(dim, grown.get(name, 0), name == "whitened") for name in names})
        self.covariance = TiedCovariance(dim, classes) if "whitened" in names else None
        self.heads = None if settings["head"] == "mixture" else Heads(settings, self.covariance)
        self.exemplars = Exemplars(dim, grown.get("memory", 0))
        self.judge = Judge(len(names), SHRINKAGES if settings["shrinkage"] is None else (settings["shrinkage"],))
        self.recipe = Recipe(**{field.name: settings[field.name] for field in dataclasses.fields(Recipe)})

    def _apply(self, *arguments, **options) -> "MixtureState":
        return self  # what .to(), .half() and .cuda() call

    @property
    def chosen(self) -> str:
        """The name of the space that predicts."""
        return list(self.spaces)[int(self.judge.chosen)]

    @property
    def space(self) -> MixtureSpace:
        """The mixture that predicts."""
        return self.spaces[self.chosen]

    @property
    def grown(self) -> dict[str, int]:
        """Rows of what grows with data, for the configuration."""
        return {
            **{name: len(each.counts) for name, each in self.spaces.items()},
            "memory": len(self.exemplars.features),
        }

    def whitener(self) -> Whitener | None:
        """The map into the whitened space."""
        return None if self.covariance is None else self.covariance.whitener()

    def learn(self, features: torch.Tensor, classes: torch.Tensor, count: int, session: int) -> dict[str, float]:
        """Learn a session of unit features (N, d) and places (N,) among `count` classes: the paper's algorithm 1, closed form.

        Expand, learn, reduce, choose, count what was held out, rewrite the memory. Returns the spaces' and heads' held-out accuracies.
        """
        held = held_out(classes, self.settings["seed"], session)
        self._add(features[~held], classes[~held])
        for space in self.spaces.values():
            key = (self.settings["seed"], session)
            space.learn(features[~held], classes[~held], self.whitener(), self.recipe, key)
        accuracies = self._judge(features[held], classes[held], count) if held.any() else {}
        if held.any():
            self._add(features[held], classes[held])
            self.count(features[held], classes[held])
        self.exemplars.add(features, classes, torch.full_like(classes, session))
        self.exemplars.rewrite(self.space, self.whitener(), self.settings["memory"])
        return accuracies

    def count(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Count samples to the nearest components of their classes."""
        for space in self.spaces.values():
            space.count(features, classes, self.whitener())

    def drop(self, gone: int) -> None:
        """Forget a class; later ones move up by one."""
        for part in (*self.spaces.values(), self.covariance, self.heads, self.exemplars):
            if part is not None:
                part.drop(gone)

    def absorb(self, other: "MixtureState", places: torch.Tensor) -> None:
        """Add what another state holds, whose class i is class places[i] here."""
        samples = [float(each.space.counts.sum()) for each in (self, other)]
        if self.covariance is not None:
            self.covariance.merge(other.covariance, places)
        for name, space in self.spaces.items():
            share = samples[1] / max(sum(samples), 1.0)
            space.absorb(other.spaces[name], places, share, self.whitener(), self.recipe)
        self.judge.merge(other.judge)
        if self.heads is not None:
            self.heads.absorb(other.heads, places)
        self.exemplars.add(other.exemplars.features, places[other.exemplars.classes], other.exemplars.sessions)
        self.exemplars.rewrite(self.space, self.whitener(), self.settings["memory"])

    def scores(self, space: MixtureSpace, count: int, shrinkage: float) -> ComponentScores:
        """Lay out a space's mixture for the scores of `count` classes."""
        statistics, weights, score = space.statistics(self.whitener()), self.settings["weights"], self.settings["score"]
        return ComponentScores(statistics, float(space.kappa), count, weights, score, shrinkage)

    def predictor(self, count: int) -> Predictor:
        """Lay out what predicts."""
        space, whitener = self.space, self.whitener()
        scores = self.scores(space, count, float(self.judge.shrinkage))
        return Predictor(scores, lambda features: space.embed(features, whitener))

    def _add(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        for sums in (self.covariance, self.heads):
            if sums is not None:
                sums.add(features, classes)

    def _judge(self, features: torch.Tensor, classes: torch.Tensor, count: int) -> dict[str, float]:
        scores = []
        for space in self.spaces.values():
            embedded = space.embed(features, self.whitener())
            views = [self.scores(space, count, each) for each in self.judge.shrinkages]
            scores.append([view.of_classes(view.logits(embedded)) for view in views])
        accuracies = dict(zip(self.spaces, self.judge.hear(scores, classes)))
        if self.heads is not None:
            shrinkage = self.judge.shrinkages.index(float(self.judge.shrinkage))
            accuracies |= self.heads.hear(features, classes, scores[int(self.judge.chosen)][shrinkage])
        return accuracies
