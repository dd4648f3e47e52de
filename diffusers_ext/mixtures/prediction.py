"""Predicting with a mixture: what is laid out once after a session, and what is then done for each chunk of features.

Scores need the product of features z with the directions w of all components. To know only which class wins, the product may be
rough where the winner is clear: in 8-bit integers it costs half as much. It is off by at most, after Cauchy and Schwarz,

    |wᵀz − ŵᵀẑ| ≤ ‖w − ŵ‖ ‖z‖ + ‖ŵ‖ ‖z − ẑ‖,

and the logsumexp of a class's K_c scores lies between the greatest and ln K_c more. A class that leads by more than both is the one
that exact scores choose; the other rows are scored exactly.
"""

import functools
import math
from collections.abc import Callable

import torch

from .scores import ComponentScores

CHUNK = 1024  # rows scored at once: the last bits of a row depend on the product it is computed in
SLACK = 1e-5  # of the longest direction, for what single precision rounds
LEVELS = (
    63  # of either sign in a feature: the sum of two products then fits the 16 bits in which older machines add them
)


class Predictor:
    """Scores and winners for features (N, d) of unit length. embed: takes a chunk of them to the space of the scores."""

    def __init__(self, scores: ComponentScores, embed: Callable[[torch.Tensor], torch.Tensor]):
        self.scores, self.embed = scores, embed
        self.screen = Screen(scores) if integer_products() else None

    def class_scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return ln p(z | class) up to a common constant, (N, C) float32."""
        return torch.cat([self._exact(self.embed(part)) for part in features.split(CHUNK)])

    def components(self, features: torch.Tensor) -> torch.Tensor:
        """Return the most probable component of each row, (N,) positions."""
        best = [self.scores.logits(self.embed(part)).argmax(1) for part in features.split(CHUNK)]
        return self.scores.order[torch.cat(best)]

    def winners(self, features: torch.Tensor) -> torch.Tensor:
        """Return the class of the highest class score of each row, (N,)."""
        found, screen = [], self.screen if len(features) else None
        for part in features.split(CHUNK):
            embedded = self.embed(part)
            if screen is None:
                found.append(self._exact(embedded).argmax(1))
                continue
            best, certain = screen(embedded)
            left = (~certain).nonzero().squeeze(1)
            if len(left):
                best[left] = self._exact(embedded[left]).argmax(1)
            if 2 * len(left) > len(part):
                screen = None  # these classes are too close together for it to pay
            found.append(best)
        return torch.cat(found)

    def _exact(self, embedded: torch.Tensor) -> torch.Tensor:
        return self.scores.of_classes(self.scores.logits(embedded))


class Screen:
    """The winners of which 8-bit products are certain."""

    def __init__(self, scores: ComponentScores):
        directions = scores.directions
        self.scores, self.steps = scores, directions.abs().amax(1).clamp_min(1e-30) / 127
        integers = (directions / self.steps[:, None]).round()
        rounded = integers * self.steps[:, None]
        self.packed = torch.ops.onednn.qlinear_prepack(integers.to(torch.int8), [CHUNK, directions.shape[1]])
        self.longest = float(rounded.norm(dim=1).max())
        self.lost = float((directions - rounded).norm(dim=1).max()) + SLACK * self.longest
        sizes = torch.tensor([count for count, classes in scores.groups for _ in range(classes)])
        self.room = sizes[scores.back].clamp_min(1).log()

    def __call__(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the leading class of unit features (N, d), and whether it is certain to win, both (N,)."""
        step = float(embedded.abs().max()) / LEVELS
        integers = torch.add(LEVELS + 1.5, embedded, alpha=1 / step).to(torch.uint8)  # rounded, and LEVELS + 1 more
        rough = multiply(integers, step, self.packed, self.steps, self.scores.offsets)
        greatest = self.scores.reduce(rough, torch.amax)
        top, best = greatest.max(1)
        off = self.lost + self.longest * step / 2 * math.sqrt(embedded.shape[1])
        return best, (greatest + self.room >= (top - 2 * off)[:, None]).sum(1) == 1


def multiply(integers: torch.Tensor, step: float, packed, steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return (integers (N, d) − 64) · step times packed (K, d) · steps (K,), plus offsets (K,): (N, K) float32.

    The operator is the one that torch.compile uses for quantised linear layers; sums are exact in 32 bits.
    """
    zero = torch.zeros(len(steps), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        integers, step, LEVELS + 1, packed, steps, zero, offsets, 1.0, 0, torch.float32, "none", [], ""
    )


@functools.cache
def integer_products() -> bool:
    """Whether this machine and this torch multiply the largest integers exactly; tried once."""
    largest = torch.full((32, 64), 127, dtype=torch.int8)
    try:
        packed = torch.ops.onednn.qlinear_prepack(largest, [CHUNK, 64])
        found = multiply(largest.to(torch.uint8), 1.0, packed, torch.ones(32), torch.zeros(32))
    except (AttributeError, RuntimeError):
        return False
    return bool((found == LEVELS * 127 * 64).all())
