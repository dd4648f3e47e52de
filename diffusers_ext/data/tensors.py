"""Pictures and conditions as arrays and as tensors.

Shapes: H, W the size of a picture, C the channels of a condition.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from .files import MASKED


def to_tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1].

    >>> to_tensor(np.zeros((4, 6, 3), np.uint8)).shape
    torch.Size([3, 4, 6])
    """
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)


def as_tensor(condition: np.ndarray) -> torch.Tensor:
    """(H, W, C) uint8, or float32 in [0, 1] with -1 as a mark -> (C, H, W) float32; InputError for anything else."""
    if not isinstance(condition, np.ndarray) or condition.ndim != 3 or condition.dtype not in (np.uint8, np.float32):
        given = (
            f"{condition.dtype} {condition.shape}" if isinstance(condition, np.ndarray) else type(condition).__name__
        )
        raise InputError(f"a condition must return an array (H, W, C), uint8 or float32, not {given}")
    # ascontiguousarray: torch refuses the negative strides of a flipped picture.
    tensor = torch.from_numpy(np.ascontiguousarray(condition.transpose(2, 0, 1)))
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not ((tensor >= 0) & (tensor <= 1) | (tensor == MASKED)).all():
        raise InputError("a float32 condition must lie in [0, 1], with -1 for masked pixels")
    return tensor


def as_uint8(images: Any) -> list[np.ndarray]:
    """Bring PIL images, arrays or tensors to a list of (H, W, 3) uint8 arrays."""
    if isinstance(images, torch.Tensor):
        images = (
            images.detach().float().permute(0, 2, 3, 1).cpu().numpy()
            if images.is_floating_point()
            else images.permute(0, 2, 3, 1).cpu().numpy()
        )
    if isinstance(images, Image.Image):
        raise ValueError("expected a list of images, got one image; wrap it in a list")
    arrays = [
        np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else np.asarray(image) for image in images
    ]
    for position, array in enumerate(arrays):
        if array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"image {position}: expected (height, width, 3), got shape {array.shape}")
    return [array if array.dtype == np.uint8 else np.rint(array.clip(0, 1) * 255).astype(np.uint8) for array in arrays]
