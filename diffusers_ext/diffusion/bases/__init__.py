"""The bases that this package knows, a file for each family. A new one is a file here and a line in FAMILIES."""

from typing import Any

from torch import nn

from .stable_diffusion_1 import StableDiffusion1
from .stable_diffusion_xl import StableDiffusionXL

FAMILIES = (StableDiffusion1(), StableDiffusionXL())


def network_of(pipe: Any) -> nn.Module | None:
    """Return the part of a pipeline that predicts, of any family; None where it has none."""
    return next(
        (
            network
            for name in dict.fromkeys(family.network for family in FAMILIES)
            if (network := getattr(pipe, name, None)) is not None
        ),
        None,
    )
