"""What a model draws while it learns, at fixed seeds, and what can be measured on it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image

from .data.fill50k import is_prompt
from .data.pairs import cover
from .data.rows import Row, load
from .errors import InputError
from .grids import labelled_grid
from .loop import save_sample
from .metrics.fill50k import colour_error, condition_following
from .sampling import draw

STEPS = 20  # of the sampler
ROWS_SHOWN = 4  # training rows drawn where no --validation_image is given


@dataclass(frozen=True)
class ValidationPair:
    condition: Image.Image
    prompt: str


def validation_pairs(options: Any, rows: list[Row]) -> list[ValidationPair]:
    """Read --validation_image with --validation_prompt, or take the first training rows.

    Raises InputError, naming the file, if an image cannot be read or the numbers of images and prompts do not match.
    """
    if not options.validation_image:
        if options.validation_prompt:
            raise InputError("--validation_prompt needs --validation_image: name the condition images to draw from")
        chosen = [(row.condition, row.text) for row in rows[:ROWS_SHOWN]]
    else:
        prompts = options.validation_prompt or []
        if len(prompts) == 1:
            prompts = prompts * len(options.validation_image)
        if len(prompts) != len(options.validation_image):
            raise InputError(
                f"{len(options.validation_image)} --validation_image but {len(prompts)} --validation_prompt; give one prompt each, or one for all"
            )
        chosen = list(zip(map(Path, options.validation_image), prompts))
    try:
        return [ValidationPair(cover(load(path), options.resolution), prompt) for path, prompt in chosen]
    except OSError as error:
        raise InputError(f"validation image cannot be read: {error}") from None


class TextToImagePreview:
    """A `loop.Preview`: a grid of prompts and, where they are fill50k's, the median colour errors."""

    def __init__(self, pipe: StableDiffusionPipeline, prompts: list[str], options: Any):
        self.pipe, self.prompts, self.options = pipe, prompts, options

    def __call__(self, step: int) -> dict[str, float]:
        images = draw(self.pipe, self.prompts, num_inference_steps=STEPS, guidance_scale=self.options.guidance_scale)
        chunks = [slice(first, first + 8) for first in range(0, min(32, len(images)), 8)]
        labels = [" | ".join(self.prompts[chunk]) for chunk in chunks]
        grid = labelled_grid([images[chunk] for chunk in chunks], [""] * 8, labels, title=f"step {step}, one seed each")
        save_sample(Path(self.options.output_dir), step, grid)
        if not all(map(is_prompt, self.prompts)):
            return {}
        circle, background = colour_error(images, self.prompts)
        return {"circle_error": float(np.median(circle)), "background_error": float(np.median(background))}


class ControlPreview:
    """A `loop.Preview`: condition, the base without control, and ours; where the prompts are fill50k's, their measures.

    load returns the base's pipeline; it is called at the first preview, which a cached run may be the first to need
    the VAE and the text encoder for.
    """

    def __init__(
        self,
        load: Callable[[], StableDiffusionPipeline],
        controlnet: ControlNetModel,
        pairs: list[ValidationPair],
        options: Any,
    ):
        self.load, self.controlnet, self.pairs, self.options = load, controlnet, pairs, options
        self.uncontrolled: list[Image.Image] | None = None

    @functools.cached_property
    def pipe(self) -> StableDiffusionPipeline:
        return self.load()

    @functools.cached_property
    def controlled(self) -> StableDiffusionControlNetPipeline:
        return StableDiffusionControlNetPipeline(
            **self.pipe.components, controlnet=self.controlnet, requires_safety_checker=False
        )

    def __call__(self, step: int) -> dict[str, float]:
        options, count = self.options, self.options.num_validation_images
        arguments = {
            "seed": options.seed,
            "num_inference_steps": STEPS,
            "guidance_scale": options.validation_guidance_scale,
            "height": options.resolution,
            "width": options.resolution,
        }
        prompts = [pair.prompt for pair in self.pairs for _ in range(count)]
        conditions = [pair.condition for pair in self.pairs for _ in range(count)]
        if self.uncontrolled is None:  # the base does not change: drawn once
            self.uncontrolled = draw(self.pipe, prompts, **arguments)
        images = draw(self.controlled, prompts, image=conditions, **arguments)
        rows = [
            [pair.condition, self.uncontrolled[first], *images[first : first + count]]
            for pair, first in zip(self.pairs, range(0, len(images), count))
        ]
        columns = ["condition", "no control", *(f"seed {options.seed}+{draw}" for draw in range(count))]
        grid = labelled_grid(rows, columns, [pair.prompt for pair in self.pairs], title=f"step {step}")
        save_sample(Path(options.output_dir), step, grid)
        if not all(map(is_prompt, prompts)):
            return {}
        return condition_following(images, conditions, prompts).summary()
