"""Rows as tensors: one joint geometry for picture and condition, drawn by the sample's key.

Shapes: H, W the sample's size, resolution² or its bucket's; C the condition's channels.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import randomness
from ..errors import InputError
from .batches import Samples
from .files import MASKED, File, Row, Size, load, load_condition, size_of
from .geometry import Frame, frame
from .tensors import as_tensor, to_tensor


class Pairs(Samples):
    """Picture, condition and caption of each row, and the numbers of their geometry that some bases read.

    proportion_empty_prompts of the captions are replaced by "", drawn anew for each (epoch, row): every caption is
    seen. Of several captions one is drawn likewise.

    condition: computes the condition after the cut (see `conditions`), from the row's condition file where there is
    one, such as a label map, otherwise from the picture. label_maps: condition files are scaled without mixing values.
    A row's mask marks the condition with -1 where it is white, after that.
    random_crop, flip (a probability): drawn anew for each (epoch, row). buckets: each row's (width, height), where
    they are not all squares; batches must then come from `buckets.BucketBatches`. interpolation, told_corner: see
    `geometry.Frame`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        resolution: int,
        seed: int,
        proportion_empty_prompts: float = 0.0,
        *,
        condition: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        label_maps: bool = False,
        random_crop: bool = False,
        flip: float = 0.0,
        buckets: Sequence[Size] | None = None,
        interpolation: str | None = None,
        told_corner: tuple[int, int] | None = None,
    ):
        assert buckets is None or len(buckets) == len(rows)
        self.rows: Sequence[Row] | Mapping[int, Row] = list(rows)
        self.resolution, self.seed, self.drop = resolution, seed, proportion_empty_prompts
        self.compute, self.label_maps = condition, label_maps
        self.random_crop, self.flip, self.buckets = random_crop, flip, buckets
        self.interpolation, self.told_corner = interpolation, told_corner

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: randomness.Key) -> dict:
        """{"key", "text", "pixel_values" (3, H, W) in [-1, 1], "time_ids" (6,), "conditioning_pixel_values" (C, H, W)}.

        The condition is in [0, 1], -1 where marked. Raises InputError naming the file that cannot be read.
        """
        picture = self._read(load, self.rows[key[1]].image, key)
        drawn = self.frame(key, picture.size)
        cut = drawn.apply(np.asarray(picture))
        return {"pixel_values": _symmetric(cut), **self._without_picture(key, drawn, cut)}

    def without_picture(self, key: randomness.Key) -> dict:
        """A sample but its "pixel_values", for those who have its latents; of the picture only the header is read."""
        return self._without_picture(key, self.frame(key))

    @property
    def fixed(self) -> bool:
        """Whether a sample's picture is the same in every epoch, so that its latents can be kept."""
        return not (self.random_crop or self.flip)

    def frame(self, key: randomness.Key, original: Size | None = None) -> Frame:
        """The geometry of a row in an epoch; original: the size of its picture, where it is known already."""
        original = original or self._read(size_of, self.rows[key[1]].image, key)
        size = self.buckets[key[1]] if self.buckets else (self.resolution, self.resolution)
        drawn = frame(original, size, self.seed, key, self.random_crop, self.flip)
        return dataclasses.replace(drawn, interpolation=self.interpolation, told_corner=self.told_corner)

    def picture(self, index: int, epoch: int = 0) -> torch.Tensor:
        """The picture of a row, (3, H, W) in [-1, 1]."""
        picture = self._read(load, self.rows[index].image, (epoch, index))
        return _symmetric(self.frame((epoch, index), picture.size).apply(np.asarray(picture)))

    def condition(self, index: int, epoch: int = 0) -> torch.Tensor:
        """The condition of a row, (C, H, W) in [0, 1], -1 where marked."""
        return self._condition((epoch, index), self.frame((epoch, index)))

    def caption(self, key: randomness.Key) -> str:
        """The caption of a row in an epoch: one of its texts, or "" where it is dropped."""
        if self.drop and randomness.uniform(self.seed, "drop", key) < self.drop:
            return ""
        texts = self.rows[key[1]].texts
        return (
            texts[int(randomness.integers(self.seed, "caption", [key], 0, len(texts)))] if len(texts) > 1 else texts[0]
        )

    def varied(
        self,
        rows: Sequence[Row],
        *,
        proportion_empty_prompts: float = 0.0,
        random_crop: bool = False,
        flip: float = 0.0,
        buckets: Sequence[Size] | None = None,
    ) -> "Pairs":
        """Return pairs of other rows in the same geometry, with what varies from epoch to epoch."""
        return Pairs(
            rows,
            self.resolution,
            self.seed,
            proportion_empty_prompts,
            condition=self.compute,
            label_maps=self.label_maps,
            interpolation=self.interpolation,
            told_corner=self.told_corner,
            random_crop=random_crop,
            flip=flip,
            buckets=buckets,
        )

    def with_rows(self, rows: Sequence[Row] | Mapping[int, Row]) -> "Pairs":
        """Return pairs of other rows, by their numbers, made as these are."""
        other = copy.copy(self)
        other.rows = rows
        return other

    def sample_conditions(self, count: int) -> torch.Tensor:
        """The conditions of the first `count` rows of the first row's size, (count, C, H, W)."""
        buckets = self.buckets
        alike = [index for index in range(len(self)) if not buckets or buckets[index] == buckets[0]]
        return torch.stack([self.condition(index) for index in alike[:count]])

    def images(self) -> list[File]:
        """The picture files of all rows, in order."""
        return [self.rows[number].image for number in range(len(self))]

    def captions(self) -> list[str]:
        """Every caption once."""
        rows = self.rows.values() if isinstance(self.rows, Mapping) else self.rows
        return sorted({text for row in rows for text in row.texts})

    def _without_picture(self, key: randomness.Key, drawn: Frame, cut: np.ndarray | None = None) -> dict:
        sample = {"key": key, "text": self.caption(key), "time_ids": drawn.time_ids()}
        if self.compute or self.rows[key[1]].condition:
            sample["conditioning_pixel_values"] = self._condition(key, drawn, cut)
        return sample

    def _condition(self, key: randomness.Key, drawn: Frame, cut: np.ndarray | None = None) -> torch.Tensor:
        """cut: the row's picture in this frame, where it is at hand."""
        row = self.rows[key[1]]
        if row.condition:
            cut = drawn.apply(self._read(load_condition, row.condition, key), nearest=self.label_maps)
        elif cut is None:
            cut = drawn.apply(np.asarray(self._read(load, row.image, key)))
        if self.compute:
            cut = self.compute(np.ascontiguousarray(cut), randomness.generator(self.seed, "condition", *key))
        condition = as_tensor(cut)
        if row.mask:
            mask = drawn.apply(self._read(load_condition, row.mask, key), nearest=True)
            condition[:, as_tensor(mask).amax(0) > 0.5] = MASKED
        return condition

    def _read(self, reader: Callable[[File], Any], file: File, key: randomness.Key) -> Any:
        try:
            return reader(file)
        except Exception as error:  # whatever a decoder raises, the file is the fault
            origin = self.rows[key[1]].origin
            raise InputError(f"{file}: cannot be read ({error}) (named in {origin}); fix or remove it") from error


def _symmetric(picture: np.ndarray) -> torch.Tensor:
    return to_tensor(picture).mul_(2).sub_(1)
