"""Which space, shrinkage and temperature? Held-out samples judge, each before it is learnt.

Densities of two spaces are not comparable; and exemplars of a memory are no judges, for herding picks the easy ones.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .randomness import generator

TEMPERATURES = torch.logspace(-3, 1, 41)
SHRINKAGES = (0.0, 3.0, 10.0, 30.0, 100.0)
FADING = 0.7  # the weight of what was told before, at each session
HELD_OUT = 10  # one sample in so many of a class is held out, and learnt once it has judged


def held_out(classes: torch.Tensor, seed: int, session: int) -> torch.Tensor:
    """Draw a tenth of each class that has ten samples: (N,) bool."""
    rank = torch.from_numpy(generator(seed, "held out", session).permutation(len(classes)))
    order = torch.argsort(classes * len(classes) + rank)  # shuffled within classes
    sizes = torch.bincount(classes)
    first = torch.cumsum(sizes, 0) - sizes
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order)) - first[classes[order]]
    return position < sizes[classes] // HELD_OUT


class Judge(nn.Module):
    """The log-losses of held-out labels for each space, shrinkage and temperature, (S, R, T), and what has the least.

    Shrinkage and temperature of a space are chosen by the sum over sessions. Between spaces an earlier session's word fades,
    for it was about a classifier that had seen less: a map that whitens gets better with every session.
    """

    def __init__(self, spaces: int, shrinkages: tuple[float, ...]):
        super().__init__()
        self.shrinkages = shrinkages
        for name, shape in (("losses", (spaces, len(shrinkages), len(TEMPERATURES))), ("recent", (spaces,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shrinkage", torch.tensor(shrinkages[0], dtype=torch.float64))
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def hear(self, scores: list[list[torch.Tensor]], classes: torch.Tensor) -> list[float]:
        """Take class scores (N, C) of each space and shrinkage for held-out classes (N,).

        Returns the balanced accuracy of each space with the shrinkage that suits it.
        """
        told = len(classes) * torch.stack([torch.stack([log_losses(each, classes) for each in of]) for of in scores])
        self.losses += told
        best = self.losses.flatten(1).argmin(1)
        self.recent = FADING * self.recent + told.flatten(1).gather(1, best[:, None]).squeeze(1)
        self._choose()
        return [balanced_accuracy(of[int(at) // len(TEMPERATURES)].argmax(1), classes) for of, at in zip(scores, best)]

    def merge(self, other: "Judge") -> None:
        """Add what another's samples told."""
        self.losses += other.losses
        self.recent += other.recent
        if self.losses.any():
            self._choose()

    def _choose(self) -> None:
        self.chosen.copy_(self.recent.argmin())
        shrinkage, temperature = divmod(int(self.losses[self.chosen].argmin()), len(TEMPERATURES))
        self.shrinkage.fill_(self.shrinkages[shrinkage])
        self.temperature.fill_(TEMPERATURES[temperature])


def log_losses(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the mean log-loss of classes (N,), each class weighing equally, under softmax(τ·scores) for each τ, (T,)."""
    weights = 1 / torch.bincount(classes, minlength=scores.shape[1]).clamp_min(1).float()
    return torch.stack([F.cross_entropy(scores * each, classes, weights) for each in TEMPERATURES.tolist()]).double()


def balanced_accuracy(predicted: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the mean over classes of the share predicted right."""
    sizes = torch.bincount(classes)
    right = torch.bincount(classes, (predicted == classes).double(), minlength=len(sizes))
    return float((right / sizes)[sizes > 0].mean())
