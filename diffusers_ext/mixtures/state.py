"""What a classifier has learnt, in numbers: classes are places 0 .. C−1 here, and everything is a buffer that grows."""

import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .columns import Columns
from .components import Components
from .em import Recipe
from .jury import SHRINKAGES, Choice, Jury, verdict
from .memory import Exemplars
from .prediction import Predictor
from .scores import SCORES
from .spaces import MixtureSpace, Whitener
from .sums import Sums


class MixtureState(nn.Module):
    """The sums of what was learnt, the jury of what was held out, its choice, and the exemplars.

    settings: the classifier's configuration; labels and grown in it give the sizes of a state that is being loaded. Learning is
    on the CPU and in double precision: moving the module or changing its precision leaves it there. What predicts is `whole`:
    the jury judges sums without it, and is then counted too.
    """

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        self.settings, dim, grown = settings, settings["dim"], settings["grown"] or {}
        self.columns = Columns(dim, settings["standardise"], bool(grown.get("columns")))
        self.sums = Sums(settings)
        self.jury = Jury(dim, grown.get("jury", 0), grown.get("waiting", ()))
        self.exemplars = Exemplars(dim, grown.get("memory", 0))
        self.shrinkages = SHRINKAGES if settings["shrinkage"] is None else (settings["shrinkage"],)
        self.ways = list(itertools.product(self.sums.spaces, SCORES[settings["score"]]))
        self.choice = Choice(self.shrinkages[0])
        self.recipe = Recipe(**{field.name: settings[field.name] for field in dataclasses.fields(Recipe)})
        self._whole: list[Sums] = []  # at most one; in a list, for it is not part of the state

    def _apply(self, *arguments, **options) -> "MixtureState":
        return self  # what .to(), .half() and .cuda() call

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_whole": []}

    @property
    def whole(self) -> Sums:
        """The sums with the jury counted to its nearest components."""
        if not self._whole:
            whole = copy.deepcopy(self.sums) if len(self.jury.classes) else self.sums
            whole.count(self.jury.features, self.jury.classes)
            self._whole = [whole]
        return self._whole[0]

    @property
    def chosen(self) -> str:
        """The name of the space that predicts."""
        return self.ways[int(self.choice.of)][0]

    @property
    def score(self) -> str:
        """The density of its components, "plugin" or "predictive"."""
        return self.ways[int(self.choice.of)][1]

    @property
    def space(self) -> MixtureSpace:
        """The mixture that predicts."""
        return self.whole.spaces[self.chosen]

    @property
    def head(self) -> str:
        """What predicts."""
        return "mixture" if self.sums.heads is None else self.sums.heads.chosen

    @property
    def temperature(self) -> float:
        """Of the probabilities of what predicts."""
        return float((self.choice if self.sums.heads is None else self.sums.heads.choice).temperature)

    @property
    def grown(self) -> dict[str, int | list[int]]:
        """Rows of what grows with data, for the configuration; and where there are any, who waits for the jury."""
        sizes = {name: len(each.counts) for name, each in self.sums.spaces.items()}
        waiting = self.jury.waiting.tolist()
        more: dict[str, int | list[int]] = {"waiting": waiting} if any(waiting) else {}
        more |= {} if self.columns.scales is None else {"columns": len(self.columns.scales)}
        return {**sizes, "memory": len(self.exemplars.features), "jury": len(self.jury.classes), **more}

    def whitener(self) -> Whitener | None:
        """The map into the whitened space."""
        return self.whole.whitener()

    def hold(self, components: Components) -> None:
        """Hold components that something else fitted; for a state with the plain space alone."""
        self._whole.clear()
        self.sums.spaces["plain"].hold(components)
        self.choice.temperature.fill_(components.temperature)

    def learn(self, features: torch.Tensor, classes: torch.Tensor, count: int, session: int) -> dict[str, float]:
        """Learn a session of unit features (N, d) and places (N,) among `count` classes: the paper's algorithm 1, closed form.

        Hold out, expand, learn, reduce, choose, rewrite the memory. Returns the spaces' and heads' accuracies on the jury.
        """
        key = self.settings["seed"], session
        held = self.jury.call(features, classes, self.settings["jury"], key)
        self.sums.learn(features[~held], classes[~held], self.recipe, key)
        accuracies = self._settle(count)
        self.exemplars.add(features, classes, torch.full_like(classes, session))
        self.exemplars.rewrite(self.space, self.whitener(), self.settings["memory"])
        return accuracies

    def count(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Count samples to the nearest components of their classes."""
        self._whole.clear()
        self.sums.count(features, classes)

    def drop(self, gone: int) -> None:
        """Forget a class; later ones move up by one."""
        self._whole.clear()
        for part in (self.sums, self.jury, self.exemplars):
            part.drop(gone)

    def absorb(self, other: "MixtureState", places: torch.Tensor, count: int) -> None:
        """Add what another state holds, whose class i is class places[i] among `count` here."""
        self.sums.absorb(other.sums, places, self.recipe)
        self.jury.absorb(other.jury, places)
        self._settle(count)
        self.exemplars.add(other.exemplars.features, places[other.exemplars.classes], other.exemplars.sessions)
        self.exemplars.rewrite(self.space, self.whitener(), self.settings["memory"])

    def predictor(self, count: int) -> Predictor:
        """Lay out the mixture that predicts."""
        return self.whole.predictor(self.space, count, self.score, float(self.choice.setting))

    def _settle(self, count: int) -> dict[str, float]:
        """Count jurors that are too many, and let the others choose."""
        self.count(*self.jury.release(self.settings["jury"]))
        return self._judge(count) if len(self.jury.classes) else {}

    def _judge(self, count: int) -> dict[str, float]:
        """Choose space, density, shrinkage, temperature and head; return balanced accuracies."""
        sums, found, scores = self.sums, {}, {}
        for way in self.ways:
            space = sums.spaces[way[0]]
            embedded = space.embed(self.jury.features, sums.whitener())
            views = [sums.scores(space, count, way[1], each) for each in self.shrinkages]
            scores[way] = [view.of_classes(view.logits(embedded)) for view in views]
            found[way] = verdict(scores[way], self.jury.classes, self.jury.weights())
        best = min(found, key=lambda way: found[way].loss)
        view, temperature = found[best].view, found[best].temperature
        self.choice.take(self.ways.index(best), self.shrinkages[view], temperature)
        ranked = sorted(found.items(), key=lambda item: -item[1].loss)
        accuracies = {space: each.accuracy for (space, _), each in ranked}  # the better density's
        if sums.heads is not None:
            accuracies |= sums.heads.hear(self.jury, scores[best][view], temperature)
        return accuracies
