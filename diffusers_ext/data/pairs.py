"""Rows as tensors: one joint geometry for picture and condition, drawn by the sample's key.

Shapes: resolution R; images (3, R, R) in [-1, 1], conditions (3, R, R) in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from .. import randomness
from .rows import Row, load


class Pairs(Dataset):
    """Picture, condition and caption of each row.

    proportion_empty_prompts of the captions are replaced by "", drawn anew for each (epoch, row): every caption is seen.
    """

    def __init__(self, rows: Sequence[Row], resolution: int, seed: int, proportion_empty_prompts: float = 0.0):
        self.rows, self.resolution, self.seed, self.drop = list(rows), resolution, seed, proportion_empty_prompts

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: randomness.Key) -> dict:
        sample = {"key": key, "text": self.caption(key), "pixel_values": self.picture(key[1])}
        if self.rows[key[1]].condition:
            sample["conditioning_pixel_values"] = self.condition(key[1])
        return sample

    def picture(self, index: int) -> torch.Tensor:
        """The picture of a row, (3, R, R) in [-1, 1]."""
        return to_tensor(cover(load(self.rows[index].image), self.resolution)) * 2 - 1

    def condition(self, index: int) -> torch.Tensor:
        """The condition of a row, (3, R, R) in [0, 1]."""
        return to_tensor(cover(load(self.rows[index].condition), self.resolution))

    def caption(self, key: randomness.Key) -> str:
        """The caption of a row in an epoch: its text, or "" where it is dropped."""
        dropped = randomness.uniform(self.seed, "drop", key) < self.drop
        return "" if dropped else self.rows[key[1]].text

    def sample_conditions(self, count: int) -> torch.Tensor:
        """The conditions of the first `count` rows, (count, 3, R, R)."""
        return torch.stack([self.condition(index) for index in range(min(count, len(self)))])

    def captions(self) -> list[str]:
        """Every caption once."""
        return sorted({row.text for row in self.rows})


def cover(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side to `side` and cut the middle: a square that loses nothing but the longer side's ends.

    The same arithmetic on both pictures of a pair of one shape leaves them aligned.
    """
    if image.size == (side, side):
        return image
    scale = side / min(image.size)
    width, height = max(side, round(image.width * scale)), max(side, round(image.height * scale))
    left, top = (width - side) // 2, (height - side) // 2
    scaled = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + side, top + side))


def to_tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
