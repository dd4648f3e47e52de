"""What every reward is: `score(prompts, images) -> (N,)`, higher is better."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torchvision.transforms import functional as vision

from .reward_inputs import InputError, check_finite, pairs, read_rgb, wants_gradient


@runtime_checkable
class RewardModel(Protocol):
    """What a pipeline takes for a reward: every `Reward`, an `ImageRewardModel`, or an object of your own."""

    def score(self, prompts: str | Sequence[str], images: Any) -> torch.Tensor:
        """Return the reward of each pair, (N,), higher is better."""


class Reward(nn.Module):
    """A reward; children implement `_score` on prompts and images of equal number, in the forms of reward_inputs.

    differentiable: whether images that require a gradient get one. ImageRewardModel has the same two members.
    """

    differentiable = True

    def score(self, prompts: str | Sequence[str], images: Any, batch_size: int = 16) -> torch.Tensor:
        """Return the reward of each pair, (N,) float32.

        Args:
            prompts: N texts, or one for all images.
            images: N images, or one for all prompts: PIL images of any mode, paths, or tensors, (N, 3, H, W) or a list
                of (3, H, W), float in [0, 1] or uint8. A gradient is kept only for tensors that require one.
            batch_size: images in memory at a time; it does not change the result.

        Raises InputError where an input cannot be used, a reward is not finite, or a gradient is asked for in vain.
        """
        prompts, images = pairs(prompts, images)
        asked = wants_gradient(images)
        if asked and not self.differentiable:
            raise InputError(
                f"{type(self).__name__} has no gradient with respect to the image; detach it, or take another"
            )
        with torch.set_grad_enabled(asked):
            parts = [
                self._score(prompts[start : start + batch_size], images[start : start + batch_size])
                for start in range(0, len(images), batch_size)
            ]
            rewards = torch.cat(parts).float()
        check_finite(rewards, self.dtype)
        return rewards

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return next((each.dtype for each in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((each.device for each in self.parameters()), torch.device("cpu"))


class FunctionReward(Reward):
    """A reward made of function(prompts, images) -> rewards (N,): images are tensors (3, H, W), float in [0, 1].

    Whether it has a gradient is seen when one is asked for.
    """

    def __init__(self, function: Callable[[list[str], list[torch.Tensor]], torch.Tensor]):
        super().__init__()
        self.function = function

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        tensors = [image if isinstance(image, torch.Tensor) else vision.to_tensor(read_rgb(image)) for image in images]
        return self.function(prompts, [each.float() / 255 if each.dtype == torch.uint8 else each for each in tensors])
