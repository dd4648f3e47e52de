"""Which space, density, shrinkage, ridge, head and temperature? Samples never learnt judge after every session, by log-loss.

They are of all sessions so far, so that a choice is good for old domains too; those of the last session alone preferred what
sharpens the newest components. Each class weighs equally, and in a class each session: large domains would drown small ones.
Densities of two spaces are not comparable; and exemplars of a memory are no judges, for they were learnt, and herding picks the
easy ones.

A tenth of fewer than ten is none, so small sessions count together: a class's samples that come fewer than ten at a time
are counted, `waiting`, and with every tenth of them one of the session at hand joins, the one of the lowest draw. Sessions
of ten or more are not counted, whatever their remainder. Which samples join depends on how rows were cut into sessions, not
on the order of classes inside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..randomness import generator
from .memory import equal_shares

TEMPERATURES = torch.logspace(-3, 1, 41)
SHRINKAGES = (0.0, 3.0, 10.0, 30.0, 100.0)
HELD_OUT = 10  # at most one sample in so many of a class and session


class Jury(nn.Module):
    """The samples held out: features (J, d) float32, their classes and sessions (J,), and draws (J,) float64, of which the lowest
    of a class stay."""

    features: torch.Tensor
    classes: torch.Tensor
    sessions: torch.Tensor
    draws: torch.Tensor

    def __init__(self, dim: int, stored: int, waiting: Sequence[int] = ()):
        super().__init__()
        self.waiting = torch.tensor(waiting, dtype=torch.int64)  # by class; kept in the configuration, no buffer
        self.register_buffer("features", torch.zeros(stored, dim))
        self.register_buffer("classes", torch.zeros(stored, dtype=torch.int64))
        self.register_buffer("sessions", torch.zeros(stored, dtype=torch.int64))
        self.register_buffer("draws", torch.zeros(stored, dtype=torch.float64))

    def call(self, features: torch.Tensor, classes: torch.Tensor, size: int, key: tuple[int, int]) -> torch.Tensor:
        """Draw which samples of a session (N, d) of classes (N,) join, up to `size` in the end: (N,) bool. key: (seed, session).

        They are added; who has to go for them is for `release` to say.
        """
        draws = torch.from_numpy(generator(key[0], "jury", key[1]).random(len(classes)))
        joins = rank_in_class(draws, classes) < self._seats(torch.bincount(classes), size)[classes]
        stays = lowest(torch.cat([self.draws, draws[joins]]), torch.cat([self.classes, classes[joins]]), size)
        joins[joins.clone()] = stays[len(self.classes) :]
        sessions = torch.full((int(joins.sum()),), key[1])
        self._append(features[joins], classes[joins], sessions, draws[joins])
        return joins

    def absorb(self, other: "Jury", places: torch.Tensor) -> None:
        """Add another learner's, whose class i is class places[i] here, as of sessions of their own."""
        after = self.sessions.amax() + 1 if len(self.sessions) else 0
        here = places[: len(other.waiting)]
        self.waiting = _padded(self.waiting, int(here.max()) + 1 if len(here) else 0)
        self.waiting[here] += other.waiting
        self._append(other.features, places[other.classes], other.sessions + after, other.draws)

    def weights(self) -> torch.Tensor:
        """Return the share of each in a mean over classes of means over their sessions, (J,) float32."""
        _, group, sizes = torch.unique(
            torch.stack([self.classes, self.sessions]), dim=1, return_inverse=True, return_counts=True
        )
        each = 1 / sizes[group].float()
        of_class = torch.zeros(int(self.classes.max()) + 1).index_add(0, self.classes, each)
        return each / of_class[self.classes] / (of_class > 0).sum()

    def release(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep `size`, in equal shares of the classes; return features and classes of the others, which may now be learnt."""
        stays = lowest(self.draws, self.classes, size)
        gone = self.features[~stays], self.classes[~stays]
        self.keep(stays)
        return gone

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows."""
        self.features, self.classes = self.features[rows], self.classes[rows]
        self.sessions, self.draws = self.sessions[rows], self.draws[rows]

    def drop(self, gone: int) -> None:
        """Forget a class; later classes move up by one."""
        self.keep(self.classes != gone)
        self.classes = self.classes - (self.classes > gone).long()
        self.waiting = self.waiting[torch.arange(len(self.waiting)) != gone]

    def _seats(self, present: torch.Tensor, size: int) -> torch.Tensor:
        """Return how many of a session's samples of each class (C,) may join, and note those that still wait."""
        seats = present // HELD_OUT
        if not size:
            return seats
        few = present * (seats == 0)
        waiting = _padded(self.waiting, len(few))
        waiting[: len(few)] += few
        owed = torch.minimum(waiting[: len(few)] // HELD_OUT, few)
        waiting[: len(few)] -= HELD_OUT * owed
        self.waiting = waiting
        return seats + owed

    def _append(
        self, features: torch.Tensor, classes: torch.Tensor, sessions: torch.Tensor, draws: torch.Tensor
    ) -> None:
        self.features, self.classes = torch.cat([self.features, features]), torch.cat([self.classes, classes])
        self.sessions, self.draws = torch.cat([self.sessions, sessions]), torch.cat([self.draws, draws])


def _padded(counts: torch.Tensor, size: int) -> torch.Tensor:
    """Return a copy of counts, with zeros up to `size` classes."""
    return F.pad(counts, (0, max(0, size - len(counts)))).clone()


def lowest(draws: torch.Tensor, classes: torch.Tensor, size: int) -> torch.Tensor:
    """Say which of draws (J,) of classes (J,) are the lowest of their class, `size` in all in equal shares: (J,) bool."""
    stock = torch.bincount(classes)
    share = equal_shares(stock[None], torch.tensor([size]), torch.zeros(1, len(stock)))[0]
    return rank_in_class(draws, classes) < share[classes]


def rank_in_class(draws: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the rank of each draw among those of its class, (J,)."""
    order = torch.argsort(draws, stable=True)
    order = order[torch.argsort(classes[order], stable=True)]
    sizes = torch.bincount(classes)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[classes[order]]
    return rank


class Choice(nn.Module):
    """What was chosen: `of` several spaces or heads, with which `setting`, its shrinkage or ridge, and which temperature."""

    def __init__(self, setting: float):
        super().__init__()
        self.register_buffer("of", torch.zeros((), dtype=torch.int64))
        self.register_buffer("setting", torch.tensor(setting, dtype=torch.float64))
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def take(self, of: int, setting: float, temperature: float) -> None:
        """Choose."""
        for buffer, value in ((self.of, of), (self.setting, setting), (self.temperature, temperature)):
            buffer.fill_(value)


@dataclass(frozen=True)
class Verdict:
    """The best of several views of the same samples: its place, temperature, mean log-loss and balanced accuracy."""

    view: int
    temperature: float
    loss: float
    accuracy: float


def verdict(views: list[torch.Tensor], classes: torch.Tensor, weights: torch.Tensor) -> Verdict:
    """Judge class scores (N, C), one for each setting, by samples of classes (N,) and weights (N,); of equals the first."""
    losses = torch.stack([log_losses(each, classes, weights) for each in views])
    view, temperature = divmod(int(losses.argmin()), len(TEMPERATURES))
    accuracy = balanced_accuracy(views[view].argmax(1), classes)
    return Verdict(view, float(TEMPERATURES[temperature]), float(losses.min()), accuracy)


def log_losses(scores: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of log-losses of classes (N,) under softmax(τ·scores) for each τ, (T,) float64."""
    each = [F.cross_entropy(scores * tau, classes, reduction="none") for tau in TEMPERATURES.tolist()]
    return torch.stack(each).double() @ weights.double()


def balanced_accuracy(predicted: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the mean over classes of the share predicted right.

    >>> balanced_accuracy(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    0.75
    """
    sizes = torch.bincount(classes)
    right = torch.bincount(classes, (predicted == classes).double(), minlength=len(sizes))
    return float((right / sizes)[sizes > 0].mean())
