"""The model that ships with this package."""

from pathlib import Path


def embedded_model() -> str:
    """Return the path of a small, really trained Stable Diffusion folder: 64x64 circles, see its README.md.

    Any diffusers code loads it: `DiffusionPipeline.from_pretrained(diffusers_ext.embedded_model())`.

    >>> from pathlib import Path
    >>> sorted(path.name for path in Path(embedded_model()).iterdir() if path.is_dir())
    ['samples', 'scheduler', 'text_encoder', 'tokenizer', 'unet', 'vae']
    """
    return str(Path(__file__).parent / "fill50k-64")
