"""The data of reward tuning: prompts to draw pictures of, pairs of pictures of which people preferred one.

Samples bring their captions embedded. Pictures come as they are, or as moments where a cache has them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import randomness
from ..data.batches import Samples
from ..data.files import Row
from ..data.pairs import Pairs
from ..diffusion.encoded import Encoded, Texts
from ..preferences.rankings import RankedPrompt
from ..randomness import Key

Pictures = Pairs | Encoded


class PromptSamples(Samples):
    """Samples {"key", "prompt", "time_ids" (6,)} and the prompt's embeddings, such as "text_embeddings" (tokens, width).

    texts: embeddings by caption. side: of the pictures to draw, in pixels. pictures: where given, each sample brings one,
    drawn by its key, as "pretrain_pixel_values" or "pretrain_moments", "pretrain_text_embeddings" ...
    """

    def __init__(
        self,
        prompts: Sequence[str],
        texts: Texts,
        seed: int,
        side: int,
        pictures: Pictures | None = None,
    ):
        self.prompts, self.texts, self.seed, self.pictures = list(prompts), texts, seed, pictures
        # Of a picture that is drawn at its full size: height, width, corner, height, width (Podell et al. 2023, 2.2).
        self.time_ids = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, key: Key) -> dict:
        prompt = self.prompts[key[1]]
        sample = {"key": key, "prompt": prompt, "time_ids": self.time_ids, **self.texts[prompt]}
        if self.pictures is None:
            return sample
        number = int(randomness.integers(self.seed, "pretraining_picture", [key], 0, len(self.pictures)))
        picture = self.pictures[key[0], number]
        own = {**picture_of(picture), **self.texts[picture["text"]]}
        return {**sample, **{f"pretrain_{name}": value for name, value in own.items()}}


class PreferencePairs(Samples):
    """Samples {"key"}, the prompt's embeddings and, as "winner_…" and "loser_…", two pictures of one prompt; one for each
    strict pair of the rankings, as often as people gave it."""

    def __init__(
        self,
        prompts: Sequence[RankedPrompt],
        pictures: Pictures,
        numbers: Mapping[tuple[str, Any], int],
        texts: Texts,
    ):
        """numbers: which row of `pictures` a (prompt, image) is; see `rows_of`."""
        self.pictures, self.texts = pictures, texts
        self.pairs = [
            (prompt.prompt, numbers[prompt.prompt, prompt.images[better]], numbers[prompt.prompt, prompt.images[worse]])
            for prompt in prompts
            for better, worse in prompt.pairs()
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> dict:
        prompt, winner, loser = self.pairs[key[1]]
        sample = {"key": key, **self.texts[prompt]}
        for side, number in (("winner", winner), ("loser", loser)):
            picture = picture_of(self.pictures[0, number])
            sample |= {f"{side}_{name}": value for name, value in picture.items()}
        return sample


def picture_of(sample: dict) -> dict:
    """Return what a loss needs of a picture beside its caption: "pixel_values" or "moments", and "time_ids"."""
    return {name: sample[name] for name in ("pixel_values", "moments", "time_ids") if name in sample}


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
