"""Train a one-parameter objective and write down, per rank, what was drawn at each step. Started by tests, on several processes."""

import json
import sys
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler

from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import path_of
from diffusers_ext.engine import loop
from diffusers_ext.engine.objective import Objective
from diffusers_ext.options import TrainingOptions
from diffusers_ext.toy.circles import Fill50k


@dataclass
class Options(TrainingOptions):
    pass


class Recorder(Objective):
    def __init__(self, rank: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 8, 8))
        self.diffusion, self.rank, self.rows, self.trainable = Diffusion(path_of(DDPMScheduler()), seed=0), rank, [], {}

    def forward(self, batch):
        clean = batch["pixel_values"][:, :1, ::8, ::8].expand(-1, 4, -1, -1)
        noisy, timesteps, noise = self.diffusion.diffuse(clean, batch["key"])
        self.rows.append({"keys": batch["key"], "timesteps": timesteps.tolist(), "noise": noise[:, 0, 0, 0].tolist()})
        return {"loss": (noisy * self.weight - noise).square().mean()}


def main(folder: str, batch_size: int, accumulation: int) -> None:
    settings = {"train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, "max_train_steps": 12}
    options = Options(output_dir=f"{folder}/run", learning_rate=0.1, checkpointing_steps=100, **settings)
    loop.check(options)
    accelerator = loop.start(options)
    loop.claim(accelerator, options)
    objective = Recorder(accelerator.process_index)
    loop.train(accelerator, objective, Fill50k(20), options)
    with open(f"{folder}/rank-{accelerator.process_index}.json", "w") as file:
        json.dump({"rows": objective.rows, "weight": objective.weight.flatten().tolist()}, file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
