"""What a model draws while it learns, at fixed seeds, and what can be measured on it."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from .. import randomness
from ..conditions.catalogue import Condition, resolve
from ..conditions.consistency import condition_consistency
from ..data.files import load_condition
from ..data.geometry import frame
from ..data.pairs import Pairs
from ..data.tensors import as_tensor
from ..diffusion.draw import draw
from ..engine.run_folder import read_metrics, save_sample
from ..errors import InputError
from ..figures import captioned_grid, labelled_grid
from ..toy.circles import is_prompt
from ..toy.measures import colour_error, condition_following
from .gap import ConditionGap
from .objective import ControlObjective, save
from .options import ControlOptions

SCORES = ("iou", "consistency", "gap")  # what says which step was best, the first that is measured
STEPS = 20  # of the sampler
SHOWN = 32  # pictures in the grid of a text-to-image model
ROWS_SHOWN = 4  # rows drawn where no --validation_image is given
MANY = 100  # pictures or held-out rows at a time, which may take minutes


@dataclass(frozen=True)
class ValidationPair:
    """A condition, (C, H, W) in [0, 1] or -1 where marked, and its prompt.

    picture: the true one, (3, H, W) in [-1, 1], where it is known. key: what the condition was drawn under.
    """

    condition: torch.Tensor
    prompt: str
    picture: torch.Tensor | None = None
    key: randomness.Key = (0, 0)


def validation_pairs(options: ControlOptions, dataset: Pairs) -> list[ValidationPair]:
    """Read --validation_image with --validation_prompt, or take the first of `dataset`.

    Raises InputError, naming the file, if an image cannot be read, the numbers of images and prompts do not match, or
    what is extracted from a picture cannot be compared with the conditions.
    """
    if not options.validation_image:
        if options.validation_prompt:
            raise InputError("--validation_prompt needs --validation_image: name the condition images to draw from")
        pairs = [
            ValidationPair(dataset.condition(index), dataset.rows[index].text, dataset.picture(index), (0, index))
            for index in range(min(ROWS_SHOWN, len(dataset)))
        ]
    else:
        images, prompts = options.validation_image, options.validation_prompt or []
        if len(images) == 1:
            images = images * max(1, len(prompts))
        if len(prompts) == 1:
            prompts = prompts * len(images)
        if len(prompts) != len(images):
            raise InputError(
                f"{len(images)} --validation_image but {len(prompts)} --validation_prompt; give one prompt each, or one for all"
            )
        files = map(Path, images)
        pairs = [ValidationPair(given_condition(file, options, dataset), text) for file, text in zip(files, prompts)]
    check_extractor(options, pairs, dataset)
    return pairs


def preview_notes(options: ControlOptions, pairs: Sequence[ValidationPair], held_out: int) -> list[str]:
    """Return notes of what a preview draws and measures where that is much."""
    count, notes = options.num_validation_images, []
    always, first = len(pairs) * (count + 1), len(pairs) * count
    when = "note: whenever samples are due (--validation_steps, and at the end),"
    if always + first > MANY:
        notes.append(
            f"{when} {always} pictures are drawn, and {first} more the first time: --num_validation_images {count} "
            f"for each of {len(pairs)} conditions, with control and once without; fewer take less time"
        )
    if held_out > MANY:
        notes.append(
            f"{when} {held_out} held-out rows are measured, in three passes; fewer --held_out_samples take less time"
        )
    return notes


def given_condition(file: Path, options: ControlOptions, dataset: Pairs) -> torch.Tensor:
    """Read a --validation_image of any size as the data's conditions are read: every channel, every level, marks.

    Raises InputError, naming the file, if it cannot be read or has other channels than the data's.
    """
    try:
        values = load_condition(file)
    except Exception as error:  # whatever a decoder raises, the file is the fault
        raise InputError(f"--validation_image {file}: cannot be read ({error})") from error
    square = frame(values.shape[1::-1], (options.resolution, options.resolution))
    square = replace(square, interpolation=dataset.interpolation)
    cut = square.apply(values, nearest=options.label_maps)
    if dataset.compute and options.label_maps:  # label maps are given uncoloured, like the data's
        cut = dataset.compute(np.ascontiguousarray(cut), randomness.generator(options.seed, "condition", 0, 0))
    condition, wanted = as_tensor(cut), dataset.condition(0)
    if len(condition) != len(wanted):
        raise InputError(
            f"--validation_image {file}: {len(condition)} channels, but the data's conditions have {len(wanted)}"
        )
    return condition


def extractor_of(options: ControlOptions) -> Condition | None:
    """Return what extracts a condition from a drawn picture, None where that is not known.

    Without --validation_extractor it is what --condition computes, unless that only colours label maps. Raises
    InputError for a name that means nothing.
    """
    name = options.validation_extractor or (None if options.label_maps else options.condition)
    return resolve(name) if name else None


def check_extractor(options: ControlOptions, pairs: list[ValidationPair], dataset: Pairs) -> None:
    """Raise InputError unless what is extracted from a picture can be compared with the conditions."""
    extractor = extractor_of(options)
    if not extractor:
        return
    try:
        condition_consistency(dataset.picture(0)[None] / 2 + 0.5, [pairs[0].condition], extractor)
    except ValueError as error:
        name = options.validation_extractor or options.condition
        raise InputError(f"{name} of a picture cannot be compared with the conditions: {error}") from error


class TextToImagePreview:
    """A `loop.Preview`: a grid of prompts and, where they are fill50k's, the median colour errors."""

    def __init__(self, pipe: DiffusionPipeline, prompts: list[str], guidance_scale: float, folder: Path):
        self.pipe, self.prompts, self.guidance_scale, self.folder = pipe, prompts, guidance_scale, folder

    def __call__(self, step: int) -> dict[str, float]:
        images = draw(self.pipe, self.prompts, num_inference_steps=STEPS, guidance_scale=self.guidance_scale)
        grid = captioned_grid(images[:SHOWN], self.prompts[:SHOWN], title=f"step {step}, one seed each")
        save_sample(self.folder, step, grid)
        if not all(map(is_prompt, self.prompts)):
            return {}
        circle, background = colour_error(images, self.prompts)
        return {"circle_error": float(np.median(circle)), "background_error": float(np.median(background))}


class Drawn(NamedTuple):
    """The pictures of a preview: with control and prompt, without control, and without prompt."""

    controlled: list[Image.Image]
    uncontrolled: list[Image.Image]
    promptless: list[Image.Image]


class ControlPreview:
    """A `loop.Preview`: draws condition, base without control, ControlNet without prompt, and ours; measures; keeps the
    best weights in `best/`.

    The score is the circles' IoU where prompts and outlines are fill50k's, else how well the condition that is extracted
    from the pictures agrees with the given one (see `conditions.consistency`) where that can be extracted, else the
    gap (see `control.gap`). Pictures without control and without prompt are measured too, as what to compare
    with. Whatever is measured is averaged over all pictures of its kind.

    load returns the base's pipeline; it is called at the first preview, which a cached run may be the first to need the
    VAE and the text encoder for.
    """

    def __init__(
        self,
        load: Callable[[], DiffusionPipeline],
        objective: ControlObjective,
        pairs: list[ValidationPair],
        gap: ConditionGap | None,
        options: ControlOptions,
    ):
        self.load, self.objective, self.pairs, self.gap, self.options = load, objective, pairs, gap, options
        self.uncontrolled: list[Image.Image] | None = None
        self.folder = Path(options.output_dir)
        self.extractor = extractor_of(options)
        fill50k = all(is_prompt(pair.prompt) and len(pair.condition) == 3 for pair in pairs)
        self.outlines = fill50k and not options.condition  # what is computed may be anything but an outline

    @functools.cached_property
    def pipe(self) -> DiffusionPipeline:
        with torch.inference_mode(False):  # moving a network within it would leave weights that no gradient may pass
            return self.load()

    @functools.cached_property
    def controlled(self) -> DiffusionPipeline:
        """The ControlNet pipeline of the base's kind, around the same parts."""
        return AutoPipelineForText2Image.from_pipe(self.pipe, controlnet=self.objective.controlnet)

    def __call__(self, step: int) -> dict[str, Any]:
        """Return measures, numbers by name, and for the trackers what was drawn, lists of pictures by tag."""
        measures = self.gap() if self.gap else {}
        drawn = self._draw()
        rows = self._rows(drawn)
        columns = ["condition", "no control", "no prompt"]
        columns += [f"ours, draw {number}" for number in range(self.options.num_validation_images)]
        prompts = [pair.prompt for pair in self.pairs]
        save_sample(self.folder, step, labelled_grid(rows, columns, prompts, title=f"step {step}"))
        measures |= self._measure(drawn)
        self._keep_best(measures)
        # Numbered, since prompts may be alike.
        return {**measures, **{f"samples/{number}: {prompts[number]}": row for number, row in enumerate(rows)}}

    def _draw(self) -> Drawn:
        """Draw all pictures: num_validation_images of each pair, and one without prompt from the first one's noise."""
        options, count = self.options, self.options.num_validation_images
        drawing = partial(
            draw,
            batch_size=options.train_batch_size,  # a size whose training fits fits here too
            num_inference_steps=STEPS,
            guidance_scale=options.validation_guidance_scale,
            height=options.resolution,
            width=options.resolution,
        )
        several = [pair for pair in self.pairs for _ in range(count)]
        prompts, conditions = [pair.prompt for pair in several], [pair.condition for pair in several]
        seeds = [options.seed + number for number in range(len(several))]
        if self.uncontrolled is None or options.unlock_decoder:  # a frozen base's pictures do not change
            self.uncontrolled = drawing(self.pipe, prompts, seeds)
        controlled = drawing(self.controlled, prompts, seeds, image=conditions)
        silent = [""] * len(self.pairs)
        promptless = drawing(self.controlled, silent, seeds[::count], image=conditions[::count])
        return Drawn(controlled, self.uncontrolled, promptless)

    def _rows(self, drawn: Drawn) -> list[list[Image.Image]]:
        """Return the grid's rows: condition, no control, no prompt, ours."""
        count = self.options.num_validation_images
        return [
            [
                as_picture(pair.condition),
                drawn.uncontrolled[number * count],
                drawn.promptless[number],
                *drawn.controlled[number * count : (number + 1) * count],
            ]
            for number, pair in enumerate(self.pairs)
        ]

    def _measure(self, drawn: Drawn) -> dict[str, float]:
        """Return the measures of each kind of picture; those of the controlled ones have the plain names."""
        measures = self._measure_kind(drawn.controlled, "")
        measures |= self._measure_kind(drawn.uncontrolled, "_no_control")
        measures |= self._measure_kind(drawn.promptless, "_no_prompt")
        known = [pair for pair in self.pairs if pair.picture is not None]
        if self.extractor and known:  # the oracle: 1 where conditions were computed, less where they were given
            pictures = torch.stack([pair.picture for pair in known if pair.picture is not None]) / 2 + 0.5
            measures["consistency_true"] = self._consistency(self.extractor, pictures, known)
        return measures

    def _measure_kind(self, images: list[Image.Image], suffix: str) -> dict[str, float]:
        """Measure pictures of one kind; suffix: of the measures' names."""
        measures: dict[str, float] = {}
        pairs = [pair for pair in self.pairs for _ in range(len(images) // len(self.pairs))]
        if self.outlines:
            conditions = torch.stack([pair.condition for pair in pairs])
            prompts = None if suffix else [pair.prompt for pair in pairs]
            followed = condition_following(images, conditions, prompts).summary()
            measures |= {f"{name}{suffix}": value for name, value in followed.items()}
        if self.extractor:
            measures[f"consistency{suffix}"] = self._consistency(self.extractor, images, pairs)
        return measures

    def _consistency(
        self, extractor: Condition, images: Sequence[Image.Image] | torch.Tensor, pairs: list[ValidationPair]
    ) -> float:
        conditions, keys = [pair.condition for pair in pairs], [pair.key for pair in pairs]
        return float(condition_consistency(images, conditions, extractor, keys, self.options.seed).mean())

    def _keep_best(self, measures: dict[str, float]) -> None:
        score = next((name for name in SCORES if name in measures), None)
        earlier = [row[score] for row in read_metrics(self.folder) if score in row]
        if score and measures[score] > max(earlier, default=-math.inf):
            save(self.objective, self.folder / "best")


def as_picture(condition: torch.Tensor) -> Image.Image:
    """Show a condition of any number of channels to a person; marked pixels are black."""
    values = condition if len(condition) == 3 else condition.mean(0, keepdim=True).expand(3, -1, -1)
    return to_pil_image(values.clamp(0, 1))
