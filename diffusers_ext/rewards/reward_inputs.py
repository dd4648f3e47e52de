"""What a reward is given: prompts and images in the forms people have them, checked before anything is computed.

Copied beside the weights of saved reward models, so it imports nothing of its package but the exception type.

An image is a PIL image of any mode, a path to a picture, or a tensor (3, H, W), float in [0, 1] or uint8.
"""

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

try:  # one exception type for all of diffusers_ext, where it is installed
    from diffusers_ext.errors import InputError
except ImportError:

    class InputError(ValueError):  # type: ignore[no-redef]
        """Something given to us cannot be used; the message says what, where, and the remedy."""


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, of RGB in [0, 1]
MAX_ASPECT = 100  # the shorter side is brought to the model's size: a longer strip would not fit into memory


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn as the EXIF data say, lay transparency over white, bring 16 bits and floats to 8: any mode -> RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values: np.ndarray = np.asarray(image, dtype=np.float32)
        values = values * 255 if image.mode == "F" else values / 257
        return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_rgb(image: Image.Image | str | os.PathLike) -> Image.Image:
    """A checked PIL image or path -> RGB; InputError naming the file where it cannot be decoded."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    with _opened(image) as opened:
        return to_rgb(opened)


def pixels(
    image: Any, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, whole: bool = False
) -> torch.Tensor:
    """Return one checked image as (3, size, size) float32, normalised.

    Its shorter side is resized (bicubic) and the middle kept; with `whole`, its longer side, and the rest is black.
    """
    if isinstance(image, torch.Tensor):
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    else:
        image = read_rgb(image)
    image = vision.resize(image, _whole(image, size) if whole else size, InterpolationMode.BICUBIC, antialias=True)
    image = vision.center_crop(image, size)  # pads with zeros where the image is smaller
    image = image.clamp(0, 1) if isinstance(image, torch.Tensor) else vision.to_tensor(image)  # bicubic overshoots
    return vision.normalize(image, mean, std)


def _whole(image: Any, size: int) -> list[int]:
    """The height and width at which the longer side is `size`."""
    height, width = image.shape[-2:] if isinstance(image, torch.Tensor) else (image.height, image.width)
    return [max(1, round(side * size / max(height, width))) for side in (height, width)]


def pairs(prompts: str | Sequence[str], images: Any) -> tuple[list[str], list]:
    """Bring prompts and images to lists of one length: one text, or one image outside a list, stands for all."""
    listed = check_images(images)
    if isinstance(prompts, str):
        prompts = [prompts] * len(listed)
    elif len(listed) == 1 and not isinstance(images, (list, tuple)):
        listed = listed * len(prompts)
    prompts = check_prompts(prompts)
    if len(prompts) != len(listed):
        raise InputError(f"{len(prompts)} prompts but {len(listed)} images; give one of each per pair")
    return prompts, listed


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Return the prompts as a list; InputError if there is none, or one is not a text."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise InputError("expected a list of prompts, one at least")
    for position, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"prompt {position}: expected a text, got {type(prompt).__name__}")
    return list(prompts)


def check_images(images: Any) -> list:
    """One or several images in any form -> a list of PIL images, paths and (3, H, W) tensors, all checked."""
    several = isinstance(images, (list, tuple)) or (isinstance(images, torch.Tensor) and images.ndim == 4)
    listed = list(images) if several else [images]
    if not listed:
        raise InputError("no images to score")
    for position, image in enumerate(listed):
        try:
            _check_image(image)
        except InputError as error:
            raise InputError(f"image {position}: {error}") from None
    return listed


def _check_image(image: Any) -> None:
    if isinstance(image, torch.Tensor):
        _check_tensor(image)
        height, width = image.shape[-2:]
    elif isinstance(image, Image.Image):
        width, height = image.size
    elif isinstance(image, (str, os.PathLike)):
        with _opened(image) as opened:
            width, height = opened.size
    else:
        raise InputError(f"expected a PIL image, a path or a tensor, got {type(image).__name__}")
    if not min(width, height) or max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{width}x{height} pixels; one side may be {MAX_ASPECT} times the other at most")


def _check_tensor(image: torch.Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise InputError(f"expected a tensor (3, H, W), got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return
    low, high = image.detach().float().aminmax()
    if not (image.is_floating_point() and low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
        raise InputError(f"expected floats in [0, 1] or uint8; got {image.dtype} from {low:.4g} to {high:.4g}")


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong with the file, then or while it is decoded, is an InputError naming it."""
    try:
        with Image.open(path) as opened:
            yield opened
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def wants_gradient(images: Any) -> bool:
    """Say whether a gradient is asked for: an image is a tensor that requires one, and gradients are enabled."""
    tensors = [images] if isinstance(images, torch.Tensor) else images
    return torch.is_grad_enabled() and any(isinstance(image, torch.Tensor) and image.requires_grad for image in tensors)
