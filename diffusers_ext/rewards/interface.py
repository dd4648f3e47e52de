"""What every reward is: `score(prompts, images) -> (N,)`, higher is better."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torchvision.transforms import functional as vision

from .reward_inputs import InputError, pairs, read_rgb, wants_gradient
from .reward_values import as_rewards, check_finite


@runtime_checkable
class RewardModel(Protocol):
    """What a pipeline takes for a reward: every `Reward`, an `ImageRewardModel`, or an object of your own."""

    def score(self, prompts: str | Sequence[str], images: Any) -> torch.Tensor:
        """Return the reward of each pair, (N,), higher is better."""


class Reward(nn.Module):
    """A reward; children implement `_score` on prompts and images of equal number, in the forms of reward_inputs.

    differentiable: whether images that require a gradient get one. ImageRewardModel has the same two members.

    >>> class Redness(Reward):
    ...     def score(self, prompts, images, batch_size=16):
    ...         return torch.stack([image[0].mean() for image in images])
    >>> Redness().score(['any'], [torch.ones(3, 4, 4)])
    tensor([1.])
    """

    differentiable = True

    def score(self, prompts: str | Sequence[str], images: Any, batch_size: int = 16) -> torch.Tensor:
        """Return the reward of each pair, (N,) float32.

        Args:
            prompts: N texts, or one for all images.
            images: N images, or one for all prompts: PIL images of any mode, paths, or tensors, (N, 3, H, W) or a list
                of (3, H, W), float in [0, 1] or uint8. A gradient is kept only for tensors that require one.
            batch_size: images in memory at a time; it does not change the result.

        Raises InputError where an input cannot be used, a reward is not finite or not one number for each pair, or a
        gradient is asked for in vain.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise InputError(f"batch_size {batch_size!r}: a whole number, 1 at least")
        prompts, images = pairs(prompts, images)
        asked = wants_gradient(images)
        if asked and not self.differentiable:
            raise InputError(
                f"{type(self).__name__} has no gradient with respect to the image; detach it, or take another"
            )
        with torch.set_grad_enabled(asked):
            parts = [
                self._batch(prompts[start : start + batch_size], images[start : start + batch_size])
                for start in range(0, len(images), batch_size)
            ]
            rewards = torch.cat(parts).float()
        check_finite(rewards, self.dtype, self.name, images)
        return rewards

    def _batch(self, prompts: list[str], images: list) -> torch.Tensor:
        return as_rewards(self._score(prompts, images), len(images), self.name)

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))


class OwnReward(Reward):
    """A reward of somebody's own: a function (prompts, images) -> rewards, or an object with such a `score`.

    prompts is a list of N texts. images are N tensors (3, H, W), float32 in [0, 1], in whatever form `score` was given
    them. It returns N numbers: a tensor, an array or a list, (N,) or (N, 1), or one number for one image. Whether it has a
    gradient is seen when one is asked for; `differentiable = False` on the object says that it has none.
    """

    def __init__(self, own: Any, name: str | None = None):
        super().__init__()
        self.own, self._name = own, str(name or getattr(own, "__name__", type(own).__name__))
        self.differentiable = bool(getattr(own, "differentiable", True))

    @property
    def name(self) -> str:
        return self._name

    def _score(self, prompts: list[str], images: list) -> Any:
        weights = next(self.parameters(), None)
        tensors = [_tensor(image) for image in images]
        return getattr(self.own, "score", self.own)(
            prompts, tensors if weights is None else [tensor.to(weights.device) for tensor in tensors]
        )


def _tensor(image: Any) -> torch.Tensor:
    """One checked image -> (3, H, W) float in [0, 1]."""
    image = image if isinstance(image, torch.Tensor) else vision.to_tensor(read_rgb(image))
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()
