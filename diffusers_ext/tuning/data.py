"""The data of reward tuning: prompts to draw pictures of, pairs of pictures of which people preferred one.

Samples bring their captions embedded. Pictures come as they are, or as moments where a cache has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from .. import randomness
from ..data.files import Row
from ..data.pairs import Pairs
from ..diffusion.encoded import Encoded
from ..preferences.rankings import RankedPrompt
from ..randomness import Key

Pictures = Pairs | Encoded


class PromptSamples(Dataset):
    """Samples {"key", "prompt", "text_embeddings" (tokens, width)}, of SDXL "time_ids" (6,).

    texts: embeddings by caption. time_ids: of the pictures to draw. pictures: where given, each sample brings one,
    drawn by its key, as "pretrain_pixel_values" or "pretrain_moments", "pretrain_text_embeddings" ...
    """

    buckets = None  # the loop takes samples in any order

    def __init__(
        self,
        prompts: Sequence[str],
        texts: Mapping[str, torch.Tensor],
        seed: int,
        time_ids: torch.Tensor | None = None,
        pictures: Pictures | None = None,
    ):
        self.prompts, self.texts, self.seed = list(prompts), texts, seed
        self.given = {} if time_ids is None else {"time_ids": time_ids}
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, key: Key) -> dict:
        prompt = self.prompts[key[1]]
        sample = {"key": key, "prompt": prompt, "text_embeddings": self.texts[prompt], **self.given}
        if self.pictures is None:
            return sample
        number = int(randomness.integers(self.seed, "pretraining_picture", [key], 0, len(self.pictures)))
        picture = picture_of(self.pictures, (key[0], number), self.texts, bool(self.given))
        return {**sample, **{f"pretrain_{name}": value for name, value in picture.items()}}


class PreferencePairs(Dataset):
    """Samples {"key", "text_embeddings"} and, as "winner_…" and "loser_…", two pictures of one prompt; one for each strict
    pair of the rankings, as often as people gave it."""

    buckets = None

    def __init__(
        self,
        prompts: Sequence[RankedPrompt],
        pictures: Pictures,
        numbers: Mapping[tuple[str, Any], int],
        texts: Mapping[str, torch.Tensor],
        with_time_ids: bool = False,
    ):
        """numbers: which row of `pictures` a (prompt, image) is; see `rows_of`."""
        self.pictures, self.texts, self.with_time_ids = pictures, texts, with_time_ids
        self.pairs = [
            (prompt.prompt, numbers[prompt.prompt, prompt.images[better]], numbers[prompt.prompt, prompt.images[worse]])
            for prompt in prompts
            for better, worse in prompt.pairs()
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> dict:
        prompt, winner, loser = self.pairs[key[1]]
        sample = {"key": key, "text_embeddings": self.texts[prompt]}
        for side, number in (("winner", winner), ("loser", loser)):
            picture = picture_of(self.pictures, (0, number), self.texts, self.with_time_ids)
            sample |= {f"{side}_{name}": value for name, value in picture.items() if name != "text_embeddings"}
        return sample


def picture_of(pictures: Pictures, key: Key, texts: Mapping[str, torch.Tensor], with_time_ids: bool) -> dict:
    """Return what a loss needs of one picture: {"pixel_values" or "moments", "text_embeddings"}, of SDXL "time_ids"."""
    sample = pictures[key]
    names = ("pixel_values", "moments", *(["time_ids"] if with_time_ids else []))
    return {
        **{name: sample[name] for name in names if name in sample},
        "text_embeddings": texts[sample["text"]],
    }


def rows_of(prompts: Sequence[RankedPrompt]) -> tuple[list[Row], dict[tuple[str, Any], int]]:
    """Return each picture of each prompt once, as rows, and which row a (prompt, image) is."""
    rows: list[Row] = []
    numbers: dict[tuple[str, Any], int] = {}
    for prompt in prompts:
        for image in prompt.images:
            if (prompt.prompt, image) not in numbers:
                numbers[prompt.prompt, image] = len(rows)
                rows.append(Row(image=image, texts=(prompt.prompt,), condition=None, origin=prompt.origin))
    return rows, numbers
