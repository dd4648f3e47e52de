"""Ranked prompts as a data set: all images of a prompt once, its pairs as positions among them, and the pairs' weight.

The order of samples is a function of the seed (`randomness.MicroBatches`), so that a sample knows how many pairs its
whole optimiser step has, on all ranks and micro-batches together. Dividing by that number makes the step's gradient
that of the mean over its pairs, however it is split; a mean of each rank's mean is not.

Shapes: K images of a prompt, P pairs.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .. import randomness
from ..data.batches import Samples
from ..data.files import File
from .rankings import RankedPrompt

WEIGHTINGS = ("pair", "prompt")


class RankedImages(Samples):
    """Samples {"key", "prompt", "images": K tensors, "pairs": (P, 2) array of (winner, loser), "pair_weight": ()}.

    image(file) is an image as the reward reads it: pixels, or what a cache holds. text(prompt) likewise.
    weighting: "pair", each pair counts alike, as in the official training; "prompt", each prompt (Ouyang et al. 2022,
    equation 1). flip mirrors half of the images, drawn anew each epoch. `split` tells how a step's samples are divided: (batch size, accumulation, ranks).
    """

    def __init__(
        self,
        prompts: Sequence[RankedPrompt],
        image: Callable[[File], torch.Tensor],
        text: Callable[[str], Any] = str,
        seed: int = 0,
        split: tuple[int, int, int] = (1, 1, 1),
        weighting: str = "pair",
        flip: bool = False,
    ):
        self.prompts, self.image, self.text, self.seed, self.weighting = list(prompts), image, text, seed, weighting
        self.flip = flip
        self.batch_size, self.micro_batches = split[0], split[1] * split[2]
        self.pairs = [prompt.pairs() for prompt in prompts]
        self.counts = np.array([len(pairs) for pairs in self.pairs])
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
        assert self.counts.all(), "prompts without a strict pair teach nothing: leave them out first"

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, key: randomness.Key) -> dict:
        prompt = self.prompts[key[1]]
        return {
            "key": key,
            "prompt": self.text(prompt.prompt),
            "images": [self.flipped(self.image(image), key, at) for at, image in enumerate(prompt.images)],
            "pairs": self.pairs[key[1]],
            "pair_weight": torch.tensor(self.pair_weight(key)),
        }

    def flipped(self, image: torch.Tensor, key: randomness.Key, at: int) -> torch.Tensor:
        """Mirror (3, H, W) from left to right half of the time, where `flip` is on."""
        return (
            image.flip(-1) if self.flip and randomness.generator(self.seed, "flip", *key, at).random() < 0.5 else image
        )

    def pair_weight(self, key: randomness.Key) -> float:
        """Return w such that the mean over a step's micro-batches of Σ w·(each pair's loss) is the step's mean."""
        if self.weighting == "prompt":
            return 1 / (self.batch_size * float(self.counts[key[1]]))
        return self.micro_batches / self.pairs_of_step(self.step_of(key))

    def step_of(self, key: randomness.Key) -> int:
        """Return the optimiser step, from 0, that takes a sample."""
        epoch, index = key
        return (epoch * len(self) + int(_places(self.seed, epoch, len(self))[index])) // self._group

    def pairs_of_step(self, step: int) -> int:
        """Return the number of pairs of an optimiser step, on all ranks together."""
        return self._pairs_before((step + 1) * self._group) - self._pairs_before(step * self._group)

    @property
    def _group(self) -> int:
        return self.batch_size * self.micro_batches

    def _pairs_before(self, position: int) -> int:
        """Pairs of the samples at positions 0 .. position-1 of the endless stream."""
        epoch, offset = divmod(position, len(self))
        order = randomness.epoch_order(self.seed, epoch, len(self))[:offset]
        return epoch * int(self.counts.sum()) + int(self.counts[order].sum())


@lru_cache(maxsize=4)
def _places(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The place of each sample in an epoch's order."""
    return np.argsort(randomness.epoch_order(seed, epoch, samples))
