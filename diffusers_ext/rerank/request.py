"""What a call of best-of-N asks for, checked: prompts, seeds, and which of the pipeline's arguments belong to which prompt.

Shapes: P prompts, N candidates of each.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from diffusers import MultiControlNetModel
from diffusers.utils.torch_utils import unwrap_module

from ..errors import InputError

SEEDS = 2**63 - 1  # seeds are drawn below this
OF_PROMPT = ("prompt", "negative_prompt", "pooled_", "negative_pooled_")  # arguments that belong to a prompt begin so
IMAGES = ("image", "mask_image", "control_image")  # and these, where a list has one per prompt
SCHEDULES = {  # (share of the steps, share of those left that continue); docs/reranking.md has what they keep
    "drafts": ((0.25, 0.375), (0.4, 1 / 3)),
    "previews": ((0.25, 0.5), (0.5, 0.5)),
}
Schedule = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Choices:
    """What a call asks for beside the pipeline's arguments; `RewardReranker.__call__` describes each.

    >>> Choices(num_candidates=8, keep=2).prune_by
    'drafts'
    """

    num_candidates: int = 16
    keep: int = 4
    chunk_size: int = 4
    seed: int | Sequence[int] | None = None
    prune: bool | Schedule | None = None
    prune_by: str = "drafts"
    preview_decoder: Any = None
    reward_prompt: str | Sequence[str] | None = None


@dataclass(frozen=True)
class Request:
    """A checked call.

    arguments: the pipeline's own, without generator and number of images. prompts: P texts that the reward reads. seeds: P
    lists of N. device: of the generators. schedule: () draws every candidate to the end.
    """

    arguments: dict[str, Any]
    prompts: list[str]
    seeds: list[list[int]]
    device: torch.device
    keep: int
    chunk_size: int
    schedule: Schedule
    by_drafts: bool

    def of_prompt(self, prompt: int, pipe: Any) -> dict[str, Any]:
        """The pipeline's arguments for one prompt."""
        several = isinstance(unwrap_module(getattr(pipe, "controlnet", None)), MultiControlNetModel)
        conditions = "control_image" if "control_image" in self.arguments else "image"
        count, arguments = len(self.prompts), dict(self.arguments)
        for name, value in arguments.items():
            if several and name == conditions:
                arguments[name] = _conditions(name, value, prompt, count)
                continue
            single = name in IMAGES and getattr(value, "ndim", 4) < 4  # one picture as a tensor or an array
            if (name.startswith(OF_PROMPT) or name in IMAGES) and not single:
                arguments[name] = _entry(value, prompt, count)
        return arguments

    def latents(self, prompt: int, numbers: Sequence[int]) -> torch.Tensor | None:
        """The rows of `latents` that belong to some candidates of a prompt, where they were given."""
        latents = self.arguments.get("latents")
        first = prompt * len(self.seeds[prompt])
        return None if latents is None else latents[[first + number for number in numbers]]

    def left(self, count: int, kept: float) -> int:
        """How many of `count` candidates continue."""
        return max(self.keep, math.ceil(kept * count - 1e-9))

    def drafts(self) -> list[tuple[int, int]]:
        """(steps, how many continue) of each round of drafts."""
        rounds, count = {}, len(self.seeds[0])
        for share, kept in self.schedule if self.by_drafts else ():
            whole, strength = self.arguments["num_inference_steps"], self.arguments.get("strength", 1.0)
            steps, left = max(1, round(share * whole)), self.left(count, kept)
            if left < count and steps < whole and int(steps * strength) > 0:  # from a picture: the share of steps taken
                rounds[steps] = count = left
        return list(rounds.items())

    def drawings(self) -> int:
        """How many pictures are drawn in all, drafts too."""
        counts = [len(self.seeds[0]), *(count for _, count in self.drafts())]
        return len(self.prompts) * sum(counts)

    def generators(self, seeds: Sequence[int]) -> list[torch.Generator]:
        """One generator per seed."""
        return [torch.Generator(self.device).manual_seed(seed) for seed in seeds]


def read_request(
    given: dict[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    choices: Choices,
) -> Request:
    """Check a call; given: the bound arguments of the pipeline, parameters: its signature. InputError says what is wrong."""
    count, keep, chunk_size = choices.num_candidates, choices.keep, choices.chunk_size
    arguments = {**{name: value for name, value in given.items() if name != "kwargs"}, **given.get("kwargs", {})}
    if min(count, keep, chunk_size) < 1:
        raise InputError(f"num_candidates {count}, keep {keep}, chunk_size {chunk_size}: 1 at least")
    if arguments.pop("num_images_per_prompt", 1) not in (None, 1):
        raise InputError("num_images_per_prompt: num_candidates says how many are drawn, keep how many are returned")
    if arguments.get("output_type", "pil") == "latent":
        raise InputError("output_type 'latent' has no picture to score; ask for 'pil', 'np' or 'pt'")
    if "generator" not in parameters:
        raise InputError("the pipeline takes no generator: its images could not be drawn again")
    schedule, by_drafts = check_schedule(choices.prune, choices.prune_by), choices.prune_by == "drafts"
    if schedule and by_drafts:
        if "num_inference_steps" not in parameters:
            raise InputError("drafts have fewer steps, but the pipeline takes no num_inference_steps")
        if named := [name for name in ("timesteps", "sigmas") if arguments.get(name) is not None]:
            raise InputError(f"drafts have fewer steps: give num_inference_steps, not {named[0]}")
        arguments.setdefault("num_inference_steps", parameters["num_inference_steps"].default)
    prompts = _prompts(arguments, choices.reward_prompt)
    seeds, device = _seeds(choices.seed, arguments.pop("generator", None), len(prompts), count)
    latents = arguments.get("latents")
    if latents is not None and len(latents) != len(prompts) * count:
        raise InputError(f"latents: {len(latents)} rows for {len(prompts)} x {count} candidates; one each")
    return Request(arguments, prompts, seeds, device, min(keep, count), chunk_size, schedule, by_drafts)


def check_schedule(prune: Any, prune_by: str) -> Schedule:
    """Return the schedule: the usual one for True, () for None and False; InputError if it makes no sense.

    >>> check_schedule(True, 'drafts')
    ((0.25, 0.375), (0.4, 0.3333333333333333))
    >>> check_schedule([(0.5, 0.25)], 'previews')
    ((0.5, 0.25),)
    """
    if prune_by not in SCHEDULES:
        raise InputError(f"prune_by {prune_by!r}: choose drafts or previews")
    if prune is None or isinstance(prune, bool):
        return SCHEDULES[prune_by] if prune else ()
    try:
        schedule = tuple((float(done), float(kept)) for done, kept in prune)
    except (TypeError, ValueError):
        raise InputError(f"prune {prune!r}: give True, or pairs (share of the steps, share kept)") from None
    times = [done for done, _ in schedule]
    if not all(0 < done < 1 and 0 < kept <= 1 for done, kept in schedule) or times != sorted(set(times)):
        raise InputError(f"prune {prune!r}: shares of the steps must rise within 0 and 1, shares kept lie above 0")
    return schedule


def _prompts(arguments: dict[str, Any], reward_prompt: Any) -> list[str]:
    """Return what the reward reads, one text per prompt; InputError where that is not known."""
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    count = (
        1 if isinstance(prompt, str) else len(prompt if prompt is not None else embeds if embeds is not None else ())
    )
    texts = prompt if reward_prompt is None else reward_prompt
    texts = [texts] * count if isinstance(texts, str) else list(texts or ())
    if not count or len(texts) != count:
        raise InputError(f"{count} prompts and {len(texts)} texts for the reward; with embeddings, give reward_prompt")
    return texts


def _entry(value: Any, prompt: int, count: int) -> Any:
    """The entry of one prompt in a list, or its row of embeddings; anything else belongs to all prompts."""
    if isinstance(value, (list, tuple)) and len(value) == count:
        return value[prompt]
    if isinstance(value, (torch.Tensor, np.ndarray)) and len(value) == count:
        return value[prompt : prompt + 1]
    return value


def _conditions(name: str, value: Any, prompt: int, count: int) -> Any:
    """The conditions of several ControlNets for one prompt, one per net.

    As diffusers has them: a list with one per net, for all prompts or, as tensors and arrays, with a row per prompt; or a list
    of such lists, one per prompt.
    """
    if not isinstance(value, (list, tuple)) or not len(value):
        return value
    if isinstance(value[0], (list, tuple)):
        if len(value) not in (1, count):
            raise InputError(
                f"{name}: {len(value)} lists of conditions for {count} prompts; give one list per prompt, each with one"
                " condition per ControlNet"
            )
        return value[prompt if len(value) == count else 0]
    rows = [getattr(condition, "ndim", 0) == 4 for condition in value]
    return [_entry(condition, prompt, count) if row else condition for condition, row in zip(value, rows)]


def _seeds(seed: Any, generator: Any, prompts: int, number: int) -> tuple[list[list[int]], torch.device]:
    """Return the seeds of every prompt's candidates, and the device that they are drawn on."""
    total, device = prompts * number, torch.device("cpu")
    if seed is not None and generator is not None:
        raise InputError("give seed or generator, not both")
    if isinstance(generator, (list, tuple)):
        device, seed = generator[0].device, [known.initial_seed() for known in generator]
    if seed is None:
        device = generator.device if generator is not None else device
        seed = torch.randint(SEEDS, (total,), generator=generator, device=device).tolist()
    seeds = (
        list(range(int(seed), int(seed) + total)) if isinstance(seed, Integral) else [int(number) for number in seed]
    )
    if len(seeds) != total:
        raise InputError(f"{len(seeds)} seeds for {prompts} x {number} candidates; give one each, or one number")
    return [seeds[start : start + number] for start in range(0, total, number)], device
