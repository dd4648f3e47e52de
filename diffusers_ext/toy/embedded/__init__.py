"""The model that ships with this package."""

from pathlib import Path


def embedded_model() -> str:
    """Return the path of a small, really trained Stable Diffusion folder: 64x64 circles, see its README.md.

    Any diffusers code loads it: `DiffusionPipeline.from_pretrained(diffusers_ext.embedded_model())`.
    """
    return str(Path(__file__).parent / "fill50k-64")
