"""Pictures and their captions as frozen towers see them: one sample a picture, one of its captions drawn each epoch."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from .. import randomness
from ..data.batches import Samples
from ..data.files import File, Row


class ImageTexts(Samples):
    """Samples {"key", "image", "text", "same_text", "same_image"}.

    images: each row's, (n, ...). texts: each distinct caption's, (m, ...), in the order of `distinct_captions`. The two
    names are whole numbers, equal where caption or picture are: neither may be another's negative. Captions are equal
    that differ in case, spaces and a full stop at most, pictures whose tensors are.
    """

    def __init__(self, rows: Sequence[Row], images: torch.Tensor, texts: torch.Tensor, seed: int = 0):
        assert len(rows) == len(images)
        self.images, self.texts, self.seed = images, texts, seed
        captions = distinct_captions(rows)
        assert len(captions) == len(texts)
        place = {caption: index for index, caption in enumerate(captions)}
        self.choices = [[place[caption] for caption in row.texts] for row in rows]
        self.text_names, self.image_names = _names(map(_plain, captions)), _names(_bytes(images))

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        see: Callable[[list[File]], torch.Tensor],
        encode: Callable[[list[str]], torch.Tensor],
        seed: int = 0,
    ) -> "ImageTexts":
        """Return the data set of rows whose pictures and captions these functions encode, (N, ...) each."""
        return cls(rows, see([row.image for row in rows]), encode(distinct_captions(rows)), seed)

    def __len__(self) -> int:
        return len(self.choices)

    def __getitem__(self, key: randomness.Key) -> dict:
        choices = self.choices[key[1]]
        drawn = int(randomness.uniform(self.seed, "caption", key) * len(choices)) if len(choices) > 1 else 0
        text = choices[drawn]
        names = {"same_text": self.text_names[text], "same_image": self.image_names[key[1]]}
        return {"key": key, "image": self.images[key[1]], "text": self.texts[text], **names}


def distinct_captions(rows: Sequence[Row]) -> list[str]:
    """Return each caption of the rows once, in their order."""
    return list(dict.fromkeys(caption for row in rows for caption in row.texts))


def _plain(caption: str) -> str:
    return " ".join(caption.casefold().split()).rstrip(".")


def _bytes(images: torch.Tensor) -> Iterator[bytes]:
    return (image.numpy().tobytes() for image in images)


def _names(values: Iterable[str | bytes]) -> torch.Tensor:
    """A whole number for each value, the same for equal ones: (n,) int64."""
    known: dict[str | bytes, int] = {}
    return torch.tensor([known.setdefault(value, len(known)) for value in values])
