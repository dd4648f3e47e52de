"""The bases that this package knows, a file for each family. A new one is a file here and a line in FAMILIES."""

from typing import Any

from .stable_diffusion_1 import StableDiffusion1
from .stable_diffusion_xl import StableDiffusionXL

FAMILIES = (StableDiffusion1(), StableDiffusionXL())
NETWORKS = ("unet", "transformer")  # what diffusers' pipelines call the part that predicts


def network_of(pipe: Any) -> Any:
    """Return the part of a pipeline that predicts, whatever its family; None where it has none.

    >>> from types import SimpleNamespace
    >>> network_of(SimpleNamespace(unet='the network', vae='not it'))
    'the network'
    """
    parts = (getattr(pipe, name, None) for name in NETWORKS)
    return next((part for part in parts if part is not None), None)  # a compiled network has no truth value
