"""What a model draws while it learns, at fixed seeds, and what can be measured on it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from .data.files import Row
from .data.fill50k import is_prompt
from .data.pairs import Pairs
from .errors import InputError
from .grids import captioned_grid, labelled_grid
from .metrics.condition_gap import ConditionGap
from .metrics.fill50k import colour_error, condition_following
from .objectives.control import ControlObjective, save
from .run_folder import read_metrics, save_sample
from .sampling import draw

SCORES = ("iou", "gap")  # what says which step was best, the first that is measured
STEPS = 20  # of the sampler
SHOWN = 32  # pictures in the grid of a text-to-image model
ROWS_SHOWN = 4  # rows drawn where no --validation_image is given


@dataclass(frozen=True)
class ValidationPair:
    """A condition, (C, H, W) in [0, 1] or -1 where marked, and its prompt."""

    condition: torch.Tensor
    prompt: str


def validation_pairs(options: Any, dataset: Pairs) -> list[ValidationPair]:
    """Read --validation_image with --validation_prompt, or take the first of `dataset`.

    Raises InputError, naming the file, if an image cannot be read or the numbers of images and prompts do not match.
    """
    if not options.validation_image:
        if options.validation_prompt:
            raise InputError("--validation_prompt needs --validation_image: name the condition images to draw from")
        shown = range(min(ROWS_SHOWN, len(dataset)))
        return [ValidationPair(dataset.condition(index), dataset.rows[index].text) for index in shown]
    prompts = options.validation_prompt or []
    if len(prompts) == 1:
        prompts = prompts * len(options.validation_image)
    if len(prompts) != len(options.validation_image):
        raise InputError(
            f"{len(options.validation_image)} --validation_image but {len(prompts)} --validation_prompt; give one prompt each, or one for all"
        )
    files = [Path(name) for name in options.validation_image]
    rows = [Row(file, (prompt,), file, f"--validation_image {file}") for file, prompt in zip(files, prompts)]
    computed = dataset.compute if options.label_maps else None  # label maps are given uncoloured, like the data's
    given = Pairs(rows, options.resolution, options.seed, label_maps=options.label_maps, condition=computed)
    return [ValidationPair(given.condition(index), prompt) for index, prompt in enumerate(prompts)]


class TextToImagePreview:
    """A `loop.Preview`: a grid of prompts and, where they are fill50k's, the median colour errors."""

    def __init__(self, pipe: StableDiffusionPipeline, prompts: list[str], options: Any):
        self.pipe, self.prompts, self.options = pipe, prompts, options

    def __call__(self, step: int) -> dict[str, float]:
        images = draw(self.pipe, self.prompts, num_inference_steps=STEPS, guidance_scale=self.options.guidance_scale)
        grid = captioned_grid(images[:SHOWN], self.prompts[:SHOWN], title=f"step {step}, one seed each")
        save_sample(Path(self.options.output_dir), step, grid)
        if not all(map(is_prompt, self.prompts)):
            return {}
        circle, background = colour_error(images, self.prompts)
        return {"circle_error": float(np.median(circle)), "background_error": float(np.median(background))}


class ControlPreview:
    """A `loop.Preview`: draws condition, base without control, and ours; measures; keeps the best weights in `best/`.

    The score is the circles' IoU where the prompts are fill50k's, else the gap (see `metrics.condition_gap`).

    load returns the base's pipeline; it is called at the first preview, which a cached run may be the first to need the
    VAE and the text encoder for.
    """

    def __init__(
        self,
        load: Callable[[], DiffusionPipeline],
        objective: ControlObjective,
        pairs: list[ValidationPair],
        gap: ConditionGap | None,
        options: Any,
    ):
        self.load, self.objective, self.pairs, self.gap, self.options = load, objective, pairs, gap, options
        self.uncontrolled: list[Image.Image] | None = None
        self.folder = Path(options.output_dir)

    @functools.cached_property
    def pipe(self) -> DiffusionPipeline:
        return self.load()

    @functools.cached_property
    def controlled(self) -> DiffusionPipeline:
        """The ControlNet pipeline of the base's kind, around the same parts."""
        return AutoPipelineForText2Image.from_pipe(self.pipe, controlnet=self.objective.controlnet)

    def __call__(self, step: int) -> dict[str, float]:
        measures = self.gap() if self.gap else {}
        measures |= self._draw(step)
        self._keep_best(measures)
        return measures

    def _draw(self, step: int) -> dict[str, float]:
        options, count = self.options, self.options.num_validation_images
        arguments = {
            "seed": options.seed,
            "batch_size": options.train_batch_size,  # a size whose training fits fits here too
            "num_inference_steps": STEPS,
            "guidance_scale": options.validation_guidance_scale,
            "height": options.resolution,
            "width": options.resolution,
        }
        prompts = [pair.prompt for pair in self.pairs for _ in range(count)]
        conditions = [pair.condition for pair in self.pairs for _ in range(count)]
        if self.uncontrolled is None or options.unlock_decoder:  # a frozen base's pictures do not change
            self.uncontrolled = draw(self.pipe, prompts, **arguments)
        images = draw(self.controlled, prompts, image=conditions, **arguments)
        rows = [
            [as_picture(pair.condition), self.uncontrolled[first], *images[first : first + count]]
            for pair, first in zip(self.pairs, range(0, len(images), count))
        ]
        columns = ["condition", "no control", *(f"ours, draw {number}" for number in range(count))]
        grid = labelled_grid(rows, columns, [pair.prompt for pair in self.pairs], title=f"step {step}")
        save_sample(self.folder, step, grid)
        if not all(map(is_prompt, prompts)):
            return {}
        return condition_following(images, torch.stack(conditions), prompts).summary()

    def _keep_best(self, measures: dict[str, float]) -> None:
        score = next((name for name in SCORES if name in measures), None)
        earlier = [row[score] for row in read_metrics(self.folder) if score in row]
        if score and measures[score] > max(earlier, default=-math.inf):
            save(self.objective, self.folder / "best")


def as_picture(condition: torch.Tensor) -> Image.Image:
    """Show a condition of any number of channels to a person; marked pixels are black."""
    values = condition if len(condition) == 3 else condition.mean(0, keepdim=True).expand(3, -1, -1)
    return to_pil_image(values.clamp(0, 1))
