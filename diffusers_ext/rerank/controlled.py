"""Best-of-N of ControlNet pipelines: a reward, and how well the picture keeps to its condition.

    score = reward(prompt, picture) + w · agreement(condition extracted from the picture, condition given)

The agreement is that of `conditions.consistency`, 1 where both are equal.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import MultiControlNetModel
from diffusers.utils.torch_utils import unwrap_module

from ..errors import InputError
from ..rewards.consistency import ConsistencyReward
from ..rewards.reward_inputs import check_images
from .candidates import score_pictures
from .reranker import RerankMixin, RerankOutput, RewardReranker


class ControlledReward:
    """The reward of pictures that are to follow one condition.

    Args:
        reward: anything with `score(prompts, images)`, or None, and then the agreement alone counts.
        extractor: extractor(image, draw) -> condition, or the name of one in `conditions`.
        condition: (height, width) -> (1, 3, height, width) in [0, 1], the condition at the size of the pictures.
        weight: w, the reward that full agreement is worth over none.
    """

    def __init__(
        self, reward: Any, extractor: Callable | str, condition: Callable[[int, int], torch.Tensor], weight: float
    ):
        self.reward, self.extractor, self.condition, self.weight = reward, extractor, condition, weight

    def score_parts(self, prompts: Sequence[str], images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return {"score", "reward", "consistency"}, (N,) each, of pictures of one size, PIL images or (3, H, W) tensors."""
        first = check_images(images)[0]
        size = first.shape[-2:] if isinstance(first, torch.Tensor) else (first.height, first.width)
        agreement = ConsistencyReward(self.extractor, list(self.condition(*size))).score(prompts, images)
        parts = {"consistency": agreement.double().numpy(), "score": self.weight * agreement.double().numpy()}
        if self.reward is not None:
            parts["reward"] = score_pictures(self.reward, prompts[0], images)["score"]
            parts["score"] = parts["score"] + parts["reward"]
        return parts


class ControlRerankMixin(RerankMixin):
    """`RerankMixin` before a ControlNet pipeline: candidates of a prompt and its condition `image`."""

    def __call__(
        self,
        *args: Any,
        condition_extractor: Callable | str | None = None,
        consistency_weight: float = 1.0,
        **kwargs: Any,
    ) -> RerankOutput | tuple:
        """Draw several candidates of each prompt and return the best; other arguments as in `RewardReranker.__call__`.

        Args:
            condition_extractor: what the conditions were extracted with: a name in `conditions`, such as "canny", or
                extractor(image, draw) -> condition. Without, conditions do not count.
            consistency_weight: the reward that full agreement with the condition is worth over none.

        `image` is one condition for all prompts, or a list with one per prompt. Raises InputError for an extractor with
        several ControlNets.
        """
        draw = self.plain_call
        if condition_extractor is None:
            return RewardReranker(self, self.reward_model, draw)(*args, **kwargs)
        if isinstance(unwrap_module(self.controlnet), MultiControlNetModel):
            raise InputError("condition_extractor: there are several ControlNets; leave it out, or rerank by one")
        image = inspect.signature(draw).bind_partial(
            *args, **{name: value for name, value in kwargs.items() if name == "image"}
        )
        rewards = [
            ControlledReward(self.reward_model, condition_extractor, self._sized(condition), consistency_weight)
            for condition in _conditions(image.arguments.get("image"))
        ]
        return RewardReranker(self, rewards if len(rewards) > 1 else rewards[0], draw)(*args, **kwargs)

    added: ClassVar[tuple[Callable, ...]] = (__call__,)

    def _sized(self, condition: Any) -> Callable[[int, int], torch.Tensor]:
        """The condition as the network is given it, at any size."""
        return lambda height, width: self.control_image_processor.preprocess(condition, height=height, width=width)


def _conditions(image: Any) -> list:
    """One condition for all prompts, or one of each."""
    if image is None:
        raise InputError("image: give the condition")
    if isinstance(image, (torch.Tensor, np.ndarray)) and image.ndim == 4:
        return [image[at : at + 1] for at in range(len(image))]
    return list(image) if isinstance(image, (list, tuple)) else [image]
