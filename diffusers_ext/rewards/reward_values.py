"""What a reward gives back: checked to be one finite number for each pair.

Copied beside the weights of saved reward models, so it imports nothing of its package but the exception type.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch

from .reward_inputs import InputError

SHOWN = 9  # pairs in a message


class WrongNumberError(InputError):
    """A reward returned another number of values than there are pairs, or no numbers."""


class NotFiniteError(InputError):
    """Some rewards are NaN or infinite: those would win or lose every comparison."""


def as_rewards(values: Any, count: int, name: str) -> torch.Tensor:
    """Bring what a reward returned to (count,): a tensor, an array or a list of (N,) or (N, 1), or one number for one pair.

    name: of the reward, for the message. Raises WrongNumberError for another number of values, or for no numbers at all.
    """
    try:
        tensor = values if isinstance(values, torch.Tensor) else _from_list(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WrongNumberError(
            f"{name}: returned {type(values).__name__}, expected {count} numbers ({error})"
        ) from None
    shape = tuple(tensor.shape)
    if shape not in {(count,), (count, 1), *([()] if count == 1 else [])} or tensor.is_complex():
        found = f"{tensor.numel()} values" + (f" of shape {shape}" if len(shape) > 1 else "")
        raise WrongNumberError(
            f"{name}: returned {found} for {count} pictures; expected one number for each, ({count},)"
        )
    return tensor.reshape(count)


def _from_list(values: Any) -> torch.Tensor:
    if isinstance(values, (list, tuple)) and any(isinstance(value, torch.Tensor) for value in values):
        return torch.stack([torch.as_tensor(value).reshape(()) for value in values])  # keeps gradients
    if isinstance(values, (str, bytes, dict)) or values is None:
        raise TypeError("that is no list of numbers")
    return torch.as_tensor(values)


def check_finite(rewards: torch.Tensor, dtype: torch.dtype, name: str, images: Sequence[Any]) -> None:
    """Raise NotFiniteError naming the pairs, and pictures that have a path, whose reward is NaN or infinite."""
    bad = (~rewards.detach().isfinite()).nonzero().flatten().tolist()[:SHOWN]
    if bad:
        remedy = "use bfloat16 or float32" if dtype == torch.float16 else "the weights may be damaged"
        paths = [str(images[index]) for index in bad if isinstance(images[index], (str, os.PathLike))]
        pictures = f" ({', '.join(paths)})" if paths else ""
        where = ", ".join(map(str, bad))
        raise NotFiniteError(f"{name}: rewards that are not finite, in {dtype}, of pairs {where}{pictures}; {remedy}")
