"""How well pictures keep to conditions, as a reward: extract the condition again and compare (metrics.condition_consistency)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..conditions.catalogue import resolve
from ..conditions.consistency import condition_consistency
from .colour import array
from .interface import Reward
from .reward_inputs import InputError


class ConsistencyReward(Reward):
    """Agreement of each picture's condition with the one it was to follow; no gradient, the prompt is not looked at.

    Args:
        extractor: extractor(image, draw) -> condition, or the name of one in `conditions`.
        conditions: N conditions, (C, H, W) in [0, 1], of the N pictures that `score` is given, or one for all.
    """

    differentiable = False

    def __init__(self, extractor: Callable | str, conditions: Sequence[Any]):
        super().__init__()
        self.extractor = resolve(extractor) if isinstance(extractor, str) else extractor
        alone = getattr(conditions, "ndim", 4) == 3  # one condition (C, H, W), not a list of them
        self.conditions = [conditions] if alone else list(conditions)

    def score(self, prompts, images, batch_size: int | None = None) -> torch.Tensor:
        """As `Reward.score`; all pictures at once, since conditions belong to them by position."""
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        return super().score(prompts, images, len(images) if several else 1)

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        conditions = self.conditions * len(images) if len(self.conditions) == 1 else self.conditions
        if len(conditions) != len(images):
            raise InputError(f"{len(images)} images but {len(conditions)} conditions; give one each")
        return torch.from_numpy(condition_consistency([array(image) for image in images], conditions, self.extractor))
