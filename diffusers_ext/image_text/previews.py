"""What an image-text model shows while it learns: captions found by held-out pictures, classes told by their names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.files import File, Row
from ..data.labelled import LabelledImages
from .captioned import distinct_captions
from .objective import ImageTextObjective
from .zero_shot import class_embeddings, class_texts, recall_at, zero_shot_accuracy

Encode = Callable[[Sequence[str]], torch.Tensor]  # texts as the objective takes them: (N, ...)
See = Callable[[Sequence[File]], torch.Tensor]  # pictures as the objective takes them: (N, ...)


@dataclass
class ZeroShot:
    """A labelled set, its pictures and its classes' names in all templates, as the objective takes them."""

    name: str
    table: LabelledImages
    images: torch.Tensor
    texts: torch.Tensor

    @classmethod
    def of(cls, name: str, table: LabelledImages, templates: Sequence[str], see: See, encode: Encode) -> "ZeroShot":
        return cls(name, table, see(table.files), encode(class_texts(table.labels, templates)))

    def __call__(self, objective: ImageTextObjective, device: torch.device) -> dict[str, float]:
        """Return the accuracy of the whole set, and where it has several domains of each."""
        classes = class_embeddings(objective.texts(self.texts.to(device)), len(self.table.labels))
        images, labels = objective.images(self.images.to(device)), torch.from_numpy(self.table.label_index).to(device)
        found = {f"zero_shot/{self.name}": zero_shot_accuracy(images, classes, labels)}
        for domain in self.table.domains if len(self.table.domains) > 1 else ():
            own = torch.from_numpy(self.table.indices(domain=domain)).to(device)
            found[f"zero_shot/{self.name}/{domain}"] = zero_shot_accuracy(images[own], classes, labels[own])
        return found


@dataclass
class Retrieval:
    """Held-out pictures and all their captions."""

    images: torch.Tensor
    texts: torch.Tensor
    owner: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], see: See, encode: Encode) -> "Retrieval":
        """A caption that several pictures share belongs to the first; the others of that caption are left out."""
        owner: dict[str, int] = {}
        for index, row in enumerate(rows):
            for caption in row.texts:
                owner.setdefault(caption, index)
        captions = distinct_captions(rows)
        return cls(
            see([row.image for row in rows]), encode(captions), torch.tensor([owner[caption] for caption in captions])
        )

    def __call__(self, objective: ImageTextObjective, device: torch.device) -> dict[str, float]:
        images, texts = objective.images(self.images.to(device)).cpu(), objective.texts(self.texts.to(device)).cpu()
        found = {}
        for k in (1, 5):
            found[f"image_to_text_r{k}"], found[f"text_to_image_r{k}"] = recall_at(images, texts, self.owner, k)
        return found


class ImageTextPreview:
    """A `loop.Preview`: all measures, without pictures."""

    def __init__(self, objective: ImageTextObjective, measures: Sequence[ZeroShot | Retrieval]):
        self.objective, self.measures = objective, measures

    def __call__(self, step: int) -> dict[str, float]:
        device, learning = self.objective.logit_scale.device, self.objective.training
        self.objective.eval()
        try:
            return {name: value for measure in self.measures for name, value in measure(self.objective, device).items()}
        finally:
            self.objective.train(learning)


def set_name(source: str) -> str:
    """What a set is called in metrics: its folder's or table's name."""
    return Path(source).resolve().stem
