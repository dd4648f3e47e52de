"""Train a ControlNet, whole or interrupted, and write down what its networks were given. For tests, and for several ranks."""

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusers_ext.control.hint import init_hint, new_controlnet
from diffusers_ext.control.objective import ControlObjective
from diffusers_ext.control.self_test import digest
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.rows import read_image_folder
from diffusers_ext.diffusion.base import base_of, load_base
from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import path_of
from diffusers_ext.engine import loop
from diffusers_ext.options import TrainingOptions


@dataclass
class Options(TrainingOptions):
    pass


class Interrupted(Exception):
    """In place of a kill, between two checkpoints."""


class Recording(ControlObjective):
    """Notes the SHA-256 of all that enters the networks, and stops before the forward pass number `stop`."""

    seen: list[str]
    stop: int | None

    def predict(self, noisy, timesteps, text, condition):
        if len(self.seen) == self.stop:
            raise Interrupted
        self.seen.append(digest([noisy, timesteps, text.text, condition]))
        return super().predict(noisy, timesteps, text, condition)


def train(base: str, data: str, run: Path, seen: list[str], stop: int | None = None, **settings) -> str:
    """Train from the same start each time; extend `seen`, and return the digest of the weights that are left."""
    common = {"max_train_steps": 6, "train_batch_size": 1, "checkpointing_steps": 2, "learning_rate": 1e-3}
    options = Options(**{**common, "output_dir": str(run), "logging_steps": 1, **settings})
    loop.check(options)
    accelerator = loop.start(options)
    dataset = Pairs(read_image_folder(data), 32, seed=0, proportion_empty_prompts=0.5)
    pipe = load_base(base)
    torch.manual_seed(0)
    controlnet = new_controlnet(pipe.unet, 8)
    init_hint(controlnet, "data", dataset.sample_conditions(8), seed=0)
    diffusion = Diffusion(path_of(pipe.scheduler), seed=0)
    objective = Recording(controlnet, base_of(pipe), diffusion)
    objective.seen, objective.stop = seen, stop
    loop.claim(accelerator, options)
    loop.train(accelerator, objective, dataset, options)
    return digest(list(controlnet.parameters()))


def compare(base: str, data: str, folder: Path, workers: int = 0, straight: tuple | None = None, **settings) -> tuple:
    """Train straight through (or take the straight run that is given), and again interrupted in step 6 and resumed from 4.

    Returns (inputs, weights) of the straight run, (inputs up to the interruption, inputs after, weights) of the other.
    """
    if straight is None:
        seen: list[str] = []
        straight = (seen, train(base, data, folder / "straight", seen, **settings))
    before, after = [], []
    again, stop = folder / f"interrupted-{workers}", 5 * settings["gradient_accumulation_steps"]
    with contextlib.suppress(Interrupted):
        train(base, data, again, before, stop, dataloader_num_workers=workers, **settings)
    more = {"dataloader_num_workers": workers, "resume_from_checkpoint": "latest", **settings}
    return straight, (before, after, train(base, data, again, after, **more))


def main(base: str, data: str, folder: str) -> None:
    """One cell on all ranks; each writes what it saw."""
    found = compare(base, data, Path(folder), gradient_accumulation_steps=1)
    rank = loop.PartialState().process_index
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
