"""What a tuned model draws while it learns, and the signs of a reward that is being fooled.

At fixed prompts and noise, beside the base's pictures from the same noise:

    reward, held_out_reward     the optimised one, and one that is not: both should rise
    diversity                   distance between pictures of one prompt: falls when the model draws one thing only
    distance_from_base          distance to the base's picture from the same noise: what the reward was paid with

Distances are root mean squares over pixels in [0, 1], on pictures brought to 64 px: what is where, in which colour.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from ..data.batches import collate
from ..diffusion.encoded import Texts
from ..diffusion.lora import adapters_at, adapters_merged, has_lora
from ..diffusion.sampler import Sampler
from ..engine.run_folder import read_metrics, save_sample
from ..figures import labelled_grid, plot_curves
from .data import PromptSamples
from .options import TuningOptions
from .policy import Policy
from .reward_path import RewardPath
from .reward_tuning import TunedObjective

SIDE = 64  # pixels at which pictures are compared
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
SHOWN = 4  # prompts in a grid
DRAWN = "preview"  # what is drawn is never drawn in training: its keys are of an epoch that does not come


class TuningPreview:
    """A `loop.Preview`: draws the validation prompts, measures, keeps the best weights in best/, and says when to stop.

    The base's pictures are drawn at the first call of `start`, before the first step.
    """

    def __init__(
        self,
        objective: TunedObjective,
        sampler: Sampler,
        path: RewardPath,
        held_out: Any | None,
        prompts: list[str],
        texts: Texts,
        options: TuningOptions,
    ):
        self.objective, self.sampler, self.path, self.held_out = objective, sampler, path, held_out
        self.options, self.folder = options, Path(options.output_dir)
        self.prompts = [prompt for prompt in prompts for _ in range(options.num_validation_images)]
        self.data = PromptSamples(self.prompts, texts, options.seed, options.resolution)

    @torch.no_grad()
    def start(self) -> dict[str, float]:
        """Draw and measure the base; returns its measures."""
        self.base = self.draw()
        self.base_measures = self.measure(self.base)
        return self.base_measures

    def __call__(self, step: int) -> dict[str, Any]:
        """Return measures, numbers by name, and for the trackers the pictures, lists by tag."""
        pictures = self.draw()
        measures = self.measure(pictures)
        save_sample(self.folder, step, self._grid({"base": self.base, f"step {step}": pictures}))
        self._keep_best(measures)
        images = [to_pil_image(picture) for picture in pictures]
        return {**measures, **{f"{name}_base": value for name, value in self.base_measures.items()}, "samples": images}

    def draw(self) -> torch.Tensor:
        """Return the pictures of all prompts and seeds, (P·S, 3, H, W) float32 on the CPU, from the same noise each time."""
        chunks = range(0, len(self.data), self.options.train_batch_size)  # a size whose training fits fits here too
        return torch.cat([self._draw(range(first, min(first + chunks.step, len(self.data)))) for first in chunks])

    def _draw(self, numbers: range) -> torch.Tensor:
        policy: Policy = self.objective.policy
        batch = collate([self.data[0, number] for number in numbers])
        batch = send_to_device({**batch, "key": [(-1, number) for number in numbers]}, policy.device)
        like = policy.noise_like(len(numbers), self.options.resolution)
        noise = self.sampler.noise(DRAWN, batch["key"], like)
        with adapters_merged(policy.network):
            latents = self.sampler.advance(policy, noise, batch, 0, len(self.sampler))
        return torch.cat([self.path.decode(latent[None]).cpu() for latent in latents])

    def measure(self, pictures: torch.Tensor) -> dict[str, float]:
        """Return the measures of this module's head, of pictures as `draw` gives them."""
        measures = {}
        for name, reward in (("reward", self.path.reward), ("held_out_reward", self.held_out)):
            if reward is not None:
                device = self.objective.policy.device
                with torch.autocast(device.type, enabled=False):
                    measures[name] = float(reward.score(self.prompts, pictures.to(device)).mean())
        small = F.interpolate(pictures, (SIDE, SIDE), mode="area")
        if self.options.num_validation_images > 1:
            measures["diversity"] = diversity(small, self.options.num_validation_images)
        base = F.interpolate(self.base, (SIDE, SIDE), mode="area")
        measures["distance_from_base"] = float(rms(small - base).mean())
        return measures

    @torch.no_grad()
    def sweep(self) -> None:
        """Measure the adapters, where there are any, at several strengths: strength.json, strength.png, samples/strength.png."""
        if not (self.options.strength_sweep and has_lora(self.objective.policy.network)):
            return
        drawn, rows = {}, []
        for strength in STRENGTHS:
            with adapters_at(self.objective.policy.network, strength):
                drawn[f"strength {strength:g}"] = self.draw()
            rows.append({"strength": strength, **self.measure(drawn[f"strength {strength:g}"])})
        (self.folder / "strength.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        self._grid(drawn).save(self.folder / "samples" / "strength.png")
        plot_trade_off(self.folder / "strength.png", rows)

    def _grid(self, drawn: dict[str, torch.Tensor]) -> Image.Image:
        """Rows of prompts, columns of kinds: the first seed of each."""
        seeds = self.options.num_validation_images
        at = range(0, min(len(self.prompts), SHOWN * seeds), seeds)
        shown = [
            (f"{kind}, seed {seed}", pictures, seed) for kind, pictures in drawn.items() for seed in self._seeds(drawn)
        ]
        rows = [[to_pil_image(pictures[first + seed]) for _, pictures, seed in shown] for first in at]
        return labelled_grid(rows, [name for name, *_ in shown], [self.prompts[first] for first in at])

    def _seeds(self, drawn: dict) -> range:
        """One seed where many kinds stand side by side, else up to four."""
        return range(1 if len(drawn) > 2 else min(4, self.options.num_validation_images))

    def _keep_best(self, measures: dict[str, float]) -> None:
        name = self._counts
        if name in measures and measures[name] > max([self.base_measures[name], *self._history()[1:]]):
            self.objective.save(self.folder / "best")

    @property
    def stop(self) -> bool:
        """Whether the last measurements of the run folder, as many as the patience, are no better than one before them."""
        patience, history = self.options.early_stopping_patience, self._history()
        return patience is not None and len(history) - 1 - int(np.argmax(history or [0])) >= patience

    @property
    def _counts(self) -> str:
        return "held_out_reward" if self.held_out is not None else "reward"

    def _history(self) -> list[float]:
        """What counts, of the base and at each measurement so far; empty before the first."""
        name = self._counts
        rows = [row for row in read_metrics(self.folder) if name in row and f"{name}_base" in row]
        return [rows[0][f"{name}_base"], *(row[name] for row in rows)] if rows else []


def rms(difference: torch.Tensor) -> torch.Tensor:
    """Root mean square over everything but the first dimension.

    >>> rms(torch.ones(2, 3, 4, 4))
    tensor([1., 1.])
    """
    return difference.flatten(1).square().mean(1).sqrt()


def diversity(pictures: torch.Tensor, seeds: int) -> float:
    """Return the mean distance between pictures of one prompt; pictures (P·S, ...) lie prompt by prompt, S seeds each.

    >>> diversity(torch.zeros(4, 3, 8, 8), seeds=2)
    0.0
    """
    groups = pictures.flatten(1).view(-1, seeds, pictures[0].numel())
    distances = torch.cdist(groups, groups) / math.sqrt(groups.shape[-1])
    return float(distances.sum() / (len(groups) * seeds * (seeds - 1)))


def plot_trade_off(path: Path, rows: list[dict[str, float]]) -> None:
    """Plot rewards against the distance from the base, a point for each strength."""
    xs = [row["distance_from_base"] for row in rows]
    names = [name for name in ("reward", "held_out_reward") if name in rows[0]]
    curves = {name.replace("_", " "): (xs, [row[name] for row in rows]) for name in names}
    plot_curves(path, curves, "distance from the base", "reward")
