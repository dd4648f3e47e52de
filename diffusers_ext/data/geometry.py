"""One geometry for all pictures of a sample: scale to cover, cut, mirror; and the aspect buckets to cut to.

A `Frame` is drawn once under the sample's key and applied to picture, condition and mask alike, each from its own
resolution. Sizes are (width, height), as PIL has them; SDXL's numbers are (height, width), as SDXL has them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .. import randomness
from ..errors import InputError
from .files import MASKED, Size

STRETCH = 2  # a bucket's sides lie between resolution / 2 and resolution · 2


@dataclass(frozen=True)
class Frame:
    """Scale a picture of size `original` to `scaled`, cut `size` out of it at `offset` (left, top), mirror it.

    interpolation: how it is scaled, by the names of torchvision's modes; None is Lanczos down, bicubic up.
    told_corner: (top, left) that SDXL is told in place of the true one.
    """

    original: Size
    scaled: Size
    offset: tuple[int, int]
    size: Size
    flip: bool = False
    interpolation: str | None = None
    told_corner: tuple[int, int] | None = None

    def apply(self, picture: np.ndarray, nearest: bool = False) -> np.ndarray:
        """(H, W, C) uint8, or float32 in [0, 1] with -1 as a mark -> (height, width, C) of the same type.

        The picture may be at another scale than `original`, as long as it shows the same. nearest keeps the values
        of label maps; otherwise `interpolation`, and marks, which are averaged bilinearly, spread to no neighbour.
        """
        if nearest:
            cut = self._resize(picture, Image.Resampling.NEAREST)
        elif picture.dtype == np.uint8:
            cut = self._resize(picture, self._smooth(picture))
        elif (picture == MASKED).any():
            cut = self._resize_marked(picture)
        else:
            cut = np.clip(self._resize(picture, self._smooth(picture)), 0, 1)
        return cut[:, ::-1] if self.flip else cut

    def time_ids(self) -> torch.Tensor:
        """SDXL's micro-conditioning (Podell et al. 2023, 2.2): original size, top and left of the cut, target size; (6,).

        top and left count in the mirrored picture, where it is mirrored: in what the network would see around the cut.
        """
        left = self.scaled[0] - self.size[0] - self.offset[0] if self.flip else self.offset[0]
        corner = self.told_corner or (self.offset[1], left)
        return torch.tensor([*self.original[::-1], *corner, *self.size[::-1]], dtype=torch.float32)

    def _smooth(self, picture: np.ndarray) -> Image.Resampling:
        if self.interpolation:
            return Image.Resampling[self.interpolation.removesuffix("_exact").upper()]  # PIL's nearest is the exact one
        down = self.scaled[0] < picture.shape[1]
        return Image.Resampling.LANCZOS if down else Image.Resampling.BICUBIC

    def _resize(self, picture: np.ndarray, filter: Image.Resampling) -> np.ndarray:
        """Scale only what is cut, by PIL: three uint8 channels at once, others one by one."""
        (left, top), (width, height) = self.offset, self.size
        if picture.shape[1::-1] == self.scaled:
            return picture[top : top + height, left : left + width]
        across, down = picture.shape[1] / self.scaled[0], picture.shape[0] / self.scaled[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        box = (*box[:2], min(box[2], picture.shape[1]), min(box[3], picture.shape[0]))  # rounding may leave the picture
        if picture.dtype == np.uint8 and picture.shape[2] == 3:
            return np.array(Image.fromarray(picture).resize(self.size, filter, box))
        channels = (np.ascontiguousarray(channel) for channel in np.moveaxis(picture, 2, 0))
        return np.stack([np.array(Image.fromarray(each).resize(self.size, filter, box)) for each in channels], axis=2)

    def _resize_marked(self, picture: np.ndarray) -> np.ndarray:
        """Average over unmarked neighbours only; a pixel is marked where the nearest one was."""
        known = (picture != MASKED).all(axis=2, keepdims=True).astype(np.float32)
        weight = self._resize(known, Image.Resampling.BILINEAR)
        mean = self._resize(picture * known, Image.Resampling.BILINEAR) / np.maximum(weight, 1e-6)
        return np.where(self._resize(known, Image.Resampling.NEAREST) > 0, np.clip(mean, 0, 1), np.float32(MASKED))


def frame(
    original: Size, size: Size, seed: int = 0, key: randomness.Key = (0, 0), random_crop: bool = False, flip: float = 0
) -> Frame:
    """Cover `size` with the picture and cut the middle, or a place drawn under the key; mirror it with probability flip.

    >>> middle = frame((100, 50), (32, 32))
    >>> middle.scaled
    (64, 32)
    >>> middle.time_ids().tolist()
    [50.0, 100.0, 0.0, 16.0, 32.0, 32.0]
    """
    scale = max(size[0] / original[0], size[1] / original[1])
    width, height = (max(side, round(length * scale)) for length, side in zip(original, size))
    margin = (width - size[0], height - size[1])
    if random_crop:
        draw = randomness.generator(seed, "crop", *key)
        left, top = (int(draw.integers(slack + 1)) for slack in margin)
    else:
        left, top = (slack // 2 for slack in margin)
    return Frame(
        original, (width, height), (left, top), size, flip > 0 and randomness.uniform(seed, "flip", key) < flip
    )


def bucket_sizes(resolution: int, multiple: int = 64) -> list[Size]:
    """The sizes whose sides are multiples of `multiple` and whose area comes nearest to resolution² from below.

    Raises InputError unless resolution is a multiple itself, so that the square is among them.

    >>> bucket_sizes(512)[:3]
    [(256, 832), (256, 896), (256, 960)]
    """
    if resolution < multiple or resolution % multiple:
        raise InputError(f"--resolution {resolution}: aspect buckets need a multiple of {multiple}")
    low, high = math.ceil(resolution / STRETCH / multiple) * multiple, resolution * STRETCH
    sizes = {(side, resolution**2 // side // multiple * multiple) for side in range(low, high + 1, multiple)}
    sizes = {size for size in sizes if low <= size[1] <= high}
    return sorted(sizes | {size[::-1] for size in sizes})


def assign_buckets(sizes: Sequence[Size], resolution: int, multiple: int = 64) -> list[Size]:
    """Give each picture the bucket that cuts off the least of it; of equals the larger one.

    >>> assign_buckets([(100, 100), (200, 100)], 64)
    [(64, 64), (64, 64)]
    """
    buckets = bucket_sizes(resolution, multiple)
    nearest = {size: _nearest(size, buckets) for size in set(sizes)}
    return [nearest[size] for size in sizes]


def _nearest(size: Size, buckets: list[Size]) -> Size:
    aspect = size[0] / size[1]
    return min(buckets, key=lambda bucket: (abs(math.log(bucket[0] / bucket[1] / aspect)), -bucket[0] * bucket[1]))


def cover(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side to `side` and cut the middle: a square that loses nothing but the longer side's ends.

    The same arithmetic on both pictures of a pair of one shape leaves them aligned.
    """
    return Image.fromarray(frame(image.size, (side, side)).apply(np.asarray(image)))
