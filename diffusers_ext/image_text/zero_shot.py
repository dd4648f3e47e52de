"""Image-text models measured: classes told by their names alone, and captions found by pictures.

Shapes: N pictures, M captions, C classes, S templates, D the width of the embeddings; all embeddings of unit length.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..errors import InputError


def check_templates(templates: Sequence[str]) -> None:
    """Raise InputError unless there is a template and each has one {} for the class's name."""
    if not templates:
        raise InputError("no templates; give one at least, such as 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"template {template!r}: needs {{}} once, where the class's name goes")


def class_texts(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return every class's name in every template: S·C texts, those of the first template first."""
    check_templates(templates)
    return [template.format(label) for template in templates for label in labels]


def class_embeddings(texts: torch.Tensor, labels: int) -> torch.Tensor:
    """Return a class's embedding, its texts' averaged and normalised again (CLIP, section 3.1.4): (S·C, D) -> (C, D)."""
    return F.normalize(texts.view(-1, labels, texts.shape[1]).mean(0), dim=1)


def zero_shot_accuracy(images: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of N pictures whose class is nearest; labels (N,) are positions among the C classes."""
    return ((images @ classes.T).argmax(1) == labels).float().mean().item()


def recall_at(images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor, k: int) -> tuple[float, float]:
    """Return R@k from picture to text, one of its captions among the k nearest, and from text to picture.

    owner (M,): the picture of each caption.
    """
    cosines = images @ texts.T
    near = owner[cosines.topk(min(k, len(texts)), dim=1).indices]
    found = (near == torch.arange(len(images))[:, None]).any(1).float().mean().item()
    back = cosines.T.topk(min(k, len(images)), dim=1).indices
    return found, (back == owner[:, None]).any(1).float().mean().item()
