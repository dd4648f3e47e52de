"""Does a picture keep to its condition? With a gradient, unlike `conditions.consistency`, which judges afterwards.

    edges       cosine of the picture's edge strength with the condition's lines, both softened: canny, scribble, outlines
    colours     minus the squared distance of the softened picture and condition: blur, tile, palettes
    module:name a function of your own, (pictures (B, 3, H, W), conditions (B, C, H, W)), both in [0, 1] -> (B,), higher is better

Shapes: B pictures, C channels of a condition.
"""

import importlib
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..conditions.edges import canny_magnitude
from ..errors import InputError

Agreement = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SOFTNESS = 5  # pixels: the reach of a line that is not where it should be


def edges(pictures: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
    """Return the cosine, 0 to 1, of both edge maps: a contrast of colours, which changes all of one, does not count.

    >>> pictures = torch.zeros(1, 3, 16, 16)
    >>> edges(pictures, torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1])
    """
    found = _soften(canny_magnitude(pictures)).flatten(1)
    wanted = _soften(conditions.mean(1, keepdim=True).clamp(min=0)).flatten(1)
    return F.cosine_similarity(found, wanted, dim=1)


def colours(pictures: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
    """Return minus the mean squared distance of softened colours; one channel stands for grey.

    >>> pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> colours(pictures, pictures)
    tensor([-0.])
    """
    seen = pictures if conditions.shape[1] == 3 else pictures.mean(1, keepdim=True)
    return -(_soften(seen) - _soften(conditions)).square().flatten(1).mean(1)


def resolve(name: str) -> Agreement:
    """Return the agreement of a name; InputError where there is none.

    >>> resolve('edges').__name__
    'edges'
    """
    if name in ("edges", "colours"):
        return {"edges": edges, "colours": colours}[name]
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{name}: {error}; there are edges, colours, and module:function of your own") from None


def _soften(maps: torch.Tensor) -> torch.Tensor:
    """Average over SOFTNESS pixels, twice: about a Gaussian."""
    for _ in range(2):
        maps = F.avg_pool2d(maps, SOFTNESS, stride=1, padding=SOFTNESS // 2, count_include_pad=False)
    return maps
