"""What a reward is given: prompts and images in the forms people have them, checked before anything is computed.

Copied beside the weights of saved reward models, so it imports nothing of its package but the exception type.

An image is, wherever this package takes one:

    a PIL image of any mode; a path to a picture; the bytes of a picture file, or an open binary file of them
    an array (H, W, 3), of grey (H, W) or (H, W, 1), or with alpha (H, W, 4): uint8, other integers in 0..255, or floats in [0, 1]
    a tensor (3, H, W): uint8, or floats in [0, 1]

Values of another range, such as those of normalised tensors and floats in 0..255, are refused: they cannot be told apart
from one another, and a wrong guess spoils the picture.
"""

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

try:  # one exception type for all of diffusers_ext, where it is installed
    from diffusers_ext.errors import InputError
except ImportError:

    class InputError(ValueError):  # type: ignore[no-redef]
        """Something given to us cannot be used; the message says what, where, and the remedy."""


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, of RGB in [0, 1]
EXPECTED = "expected uint8 in 0..255 or floats in [0, 1]"
MAX_ASPECT = 100  # the shorter side is brought to the model's size: a longer strip would not fit into memory


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn as the EXIF data say, lay transparency over white, bring 16 bits and floats to 8: any mode -> RGB.

    Raises InputError for a picture of floats outside [0, 1] or of integers that are neither 16 bits nor can be told.
    """
    made_here = image.format is None  # not read from a file, whose format says how many bits there are
    image = _turned(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image, made_here)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, Image.DecompressionBombError):  # of the picture itself
        raise
    except Exception:  # of broken EXIF data, whatever their parser raises: the picture as it lies
        image.load()
        return image


def _eight_bits(image: Image.Image, made_here: bool) -> Image.Image:
    """Scale a picture of 16-bit integers, or of floats in [0, 1], to 8 bits."""
    values: np.ndarray = np.asarray(image, dtype=np.float32)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if image.mode == "F" and not (low >= -1e-3 and high <= 1 + 1e-3):  # true for NaN too
        raise InputError(f"a picture of floats from {low:.4g} to {high:.4g}; {EXPECTED}")
    # A file of mode I;16 has 16 bits. Mode I has 32, in which people also keep 8-bit values.
    unclear = (made_here or image.mode == "I") and 1 <= high <= 255
    if image.mode != "F" and (unclear or low < 0 or high > 65535):
        raise InputError(
            f"a picture of mode {image.mode} with values from {low:.0f} to {high:.0f}: 8 or 16 bits? {EXPECTED}, or 16 bits "
            "that reach above 255; an 8-bit picture has mode L or RGB"
        )
    values = values * 255 if image.mode == "F" else values / 257
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8)).convert("RGB")


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
    listed = as_list(images)
    if not listed:
        raise InputError("no images to score")
    for position, image in enumerate(listed):
        try:
            listed[position] = check_image(image)
        except InputError as error:
            raise InputError(f"image {position}: {error}") from None
    return listed


def as_list(images: Any) -> list:
    """Return several images, a list, tuple, iterator or batch (N, ...), as a list, and a single one as a list of one."""
    batch = isinstance(images, (torch.Tensor, np.ndarray)) and images.ndim == 4
    return list(images) if batch or (isinstance(images, (list, tuple, Iterator)) and not _is_file(images)) else [images]


def check_image(image: Any) -> Any:
    """Return one image as a PIL image, a path or a (3, H, W) tensor; InputError for what cannot be used."""
    image = as_picture(image)
    _check_image(image)
    return image


def _is_file(image: Any) -> bool:
    return hasattr(image, "read") and hasattr(image, "seek")


def as_picture(image: Any) -> Any:
    """Bring an image that is an array, bytes or an open file to a PIL image or a tensor; others are returned as they are.

    Raises InputError, telling type, shape and range, for arrays and bytes that are no picture.
    """
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = BytesIO(image)
    if _is_file(image):
        with _opened(image) as opened:
            return to_rgb(opened)
    return image


def _of_array(image: np.ndarray) -> Any:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) -> a PIL image of 8 bits, or of floats a tensor (3, H, W)."""
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        remedy = ": transpose(1, 2, 0)" if image.ndim == 3 and image.shape[0] in (1, 3, 4) else ""
        raise InputError(f"expected an array (H, W, 3), or (H, W) of grey, got {image.shape}{remedy}")
    whole = _in_range(image, "iu", 0, 255) and image.dtype != np.uint16
    if not whole and not _in_range(image, "f", -1e-3, 1 + 1e-3):
        told = f" from {image.min():.4g} to {image.max():.4g}" if image.dtype.kind in "iuf" else ""
        raise InputError(f"an array of {image.dtype}{told}; {EXPECTED}")
    image = image.reshape(*image.shape[:2], channels)
    if whole:
        eight = np.ascontiguousarray(image.astype(np.uint8))
        return to_rgb(Image.fromarray(eight[..., 0] if channels == 1 else eight))
    unit = torch.from_numpy(np.ascontiguousarray(image.astype(np.float32))).clamp(0, 1).permute(2, 0, 1)
    if channels == 4:
        unit = unit[:3] * unit[3:] + (1 - unit[3:])
    return unit.expand(3, -1, -1)


def _in_range(values: np.ndarray, kinds: str, low: float, high: float) -> bool:
    """Say whether values are of one of these kinds of type, and all in the range; NaN is in none."""
    return values.dtype.kind in kinds and bool(low <= values.min() and values.max() <= high)


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
        raise InputError(f"expected a PIL image, a path, bytes, an array or a tensor, got {type(image).__name__}")
    if not min(width, height) or max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{width}x{height} pixels; one side may be {MAX_ASPECT} times the other at most")


def _check_tensor(image: torch.Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        remedy = ": permute(2, 0, 1)" if image.ndim == 3 and image.shape[2] == 3 else ""
        raise InputError(f"expected a tensor (3, H, W), got {tuple(image.shape)}{remedy}")
    if image.dtype == torch.uint8:
        return
    low, high = image.detach().float().aminmax()
    if not (image.is_floating_point() and low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
        raise InputError(
            f"expected floats in [0, 1] or uint8 in 0..255; got {image.dtype} from {low:.4g} to {high:.4g}"
        )


@contextlib.contextmanager
def _opened(path: Any) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong with the file, then or while it is decoded, is an InputError naming it."""
    try:
        with Image.open(path) as opened:
            yield opened
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{_called(path)}: cannot be read ({reason})") from None


def _called(source: Any) -> str:
    """The name of a path or open file; of bytes what they begin with."""
    if isinstance(source, BytesIO):
        return f"bytes that begin with {source.getvalue()[:12]!r}"
    return str(getattr(source, "name", source))


def wants_gradient(images: Any) -> bool:
    """Say whether a gradient is asked for: an image is a tensor that requires one, and gradients are enabled."""
    tensors = [images] if isinstance(images, torch.Tensor) else images
    return torch.is_grad_enabled() and any(isinstance(image, torch.Tensor) and image.requires_grad for image in tensors)
