"""Draw pictures that can be drawn again: one generator per picture."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

BAR_DELAY = 5  # seconds after which a drawing shows how far it is


def draw(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    image: Sequence | None = None,
    **arguments,
) -> list[Image.Image]:
    """Return one picture per prompt; picture i starts from seed + i, or from seed[i] of several, whatever the batch.

    image: the conditions of a ControlNet pipeline, one per prompt: pictures, or tensors (C, H, W) in [0, 1]. Other arguments go to the pipeline.
    A drawing that takes long shows a bar.

    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.diffusion.base import load_base
    >>> pipe = load_base(embedded_model())
    >>> pictures = draw(pipe, ['red circle', 'blue circle'], seed=0, num_inference_steps=2)
    >>> [picture.size for picture in pictures]
    [(64, 64), (64, 64)]
    """
    pipe.set_progress_bar_config(disable=True)
    seeds = [seed + number for number in range(len(prompts))] if isinstance(seed, int) else seed
    pictures: list[Image.Image] = []
    with tqdm(total=len(prompts), desc="drawing", unit="picture", delay=BAR_DELAY, leave=False) as bar:
        for first in range(0, len(prompts), batch_size):
            chunk = slice(first, first + batch_size)
            generators = [torch.Generator().manual_seed(each) for each in seeds[chunk]]
            conditions = {}
            if image is not None:
                several = list(image[chunk])
                conditions["image"] = torch.stack(several) if isinstance(several[0], torch.Tensor) else several
            pictures += pipe(list(prompts[chunk]), generator=generators, **conditions, **arguments).images
            bar.update(len(pictures) - bar.n)
    return pictures
