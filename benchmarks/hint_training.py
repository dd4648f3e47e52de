"""One training of the hint network's benchmark, and the bases it runs on; see hint_init.py.

Circles at 64 px in latents of 16 x 16, all samples in memory. A training ends as soon as the condition is followed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

FOLLOWED, BLIND, HELD_OUT, SCENES = 0.5, 0.05, 24, 1000
# Steps at which IoU is measured.
LOOKS = {*range(4, 24, 4), *range(25, 50, 5), *range(50, 100, 10), *range(100, 300, 25), *range(300, 2000, 50)}


@dataclass(frozen=True)
class Base:
    """A base: the channels of its U-Net, None for the embedded model's, and the side of its conditions in pixels.

    A side of 128 needs SD 1.5's own hint network of eight convolutions, 64 one of six.
    """

    prediction: str
    channels: tuple[int, ...] | None = None
    side: int = 64


BASES = {
    "small": Base("v_prediction", (24, 32, 48)),
    "small, epsilon": Base("epsilon", (24, 32, 48)),
    "embedded": Base("v_prediction"),
    "embedded, deep hint": Base("v_prediction", side=128),
}


@dataclass(frozen=True)
class Run:
    """One training: everything that its result depends on."""

    base: str
    kind: str
    init: str
    rate: float
    batch: int
    seed: int
    limit: int


def train(this: Run, folder: Path, base_steps: int) -> list[list[float]]:
    """Train until the condition is followed or the limit is reached; return rows of (step, IoU, relative gap)."""
    import torch

    from diffusers_ext.control.gap import ConditionGap
    from diffusers_ext.control.hint import init_hint, new_controlnet
    from diffusers_ext.control.objective import ControlObjective
    from diffusers_ext.diffusion.base import base_of
    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of
    from diffusers_ext.randomness import MicroBatches, Share

    pipe, side = base_model(this.base, folder, base_steps), BASES[this.base].side
    data, held_out = samples("train", SCENES, this.kind, side), samples("test", HELD_OUT, this.kind, side)
    torch.manual_seed(this.seed)
    controlnet = new_controlnet(pipe.unet, side // 16)  # latents are 16 x 16
    init_hint(controlnet, this.init, data["conditioning_pixel_values"][:64], this.seed)
    objective = ControlObjective(controlnet, base_of(pipe), Diffusion(path_of(pipe.scheduler), this.seed))
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=this.rate, fused=True)
    gap = ConditionGap(objective, batch_of(held_out, [(0, index) for index in range(HELD_OUT)]))
    with torch.no_grad():
        untrained = score(objective, pipe, held_out)
    curve = [[0, round(untrained, 4), 0.0]]
    for step, keys in enumerate(MicroBatches(SCENES, this.seed, Share(this.batch, this.limit)), start=1):
        objective(batch_of(data, keys))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in LOOKS or step == this.limit:
            with torch.no_grad():
                seen = gap()["gap"]
            # While the network does not look at its condition, its pictures are the untrained one's.
            drawn = score(objective, pipe, held_out) if seen > BLIND else untrained
            curve.append([step, round(drawn, 4), round(seen, 4)])
            if drawn >= FOLLOWED:
                break
    return curve


def score(objective, pipe, held_out: dict, steps: int = 10, guidance: float = 2.0) -> float:
    """Return the mean IoU of drawn circles with the discs of the held-out scenes; one fixed noise per picture, DDIM.

    Drawn by hand: a pipeline would resize the conditions to the pictures.
    """
    import torch

    from diffusers_ext import randomness
    from diffusers_ext.diffusion.conditioning import Conditioning
    from diffusers_ext.toy.measures import condition_following

    condition = held_out["conditioning_pixel_values"].repeat(2, 1, 1, 1)
    text = torch.cat([held_out["text_embeddings"], held_out["no_text"].expand_as(held_out["text_embeddings"])])
    latents = randomness.normal(0, "drawing", [(0, index) for index in range(HELD_OUT)], (4, 16, 16))
    pipe.scheduler.set_timesteps(steps)
    for timestep in pipe.scheduler.timesteps:
        both = objective.predict(
            latents.repeat(2, 1, 1, 1), timestep.expand(2 * HELD_OUT), Conditioning(text), condition
        )
        with_text, without = both.chunk(2)
        latents = pipe.scheduler.step(without + guidance * (with_text - without), timestep, latents).prev_sample
    pictures = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    return float(condition_following(pictures.clamp(0, 1), held_out["outline"]).iou.mean())


def batch_of(data: dict, keys: list) -> dict:
    """Collate samples that are in memory."""
    index = [key[1] for key in keys]
    names = ("moments", "text_embeddings", "conditioning_pixel_values")
    return {
        "key": keys,
        "text": [data["text"][number] for number in index],
        **{name: data[name][index] for name in names},
    }


@functools.cache
def samples(split: str, count: int, kind: str, side: int) -> dict:
    """Return scenes as the encoders and the condition see them; a randomised condition is drawn once per scene."""
    import numpy as np
    import torch

    from diffusers_ext import randomness
    from diffusers_ext.conditions.catalogue import resolve
    from diffusers_ext.data.tensors import as_tensor
    from diffusers_ext.toy.circles import draw_condition, draw_target, scene

    scenes = [scene(index, split=split) for index in range(count)]
    conditions = [draw_condition(drawn, side) for drawn in scenes]
    if kind != "outline":
        pictures = [np.ascontiguousarray(draw_target(drawn, side)) for drawn in scenes]
        draws = [randomness.generator(0, "condition", 0, index) for index in range(count)]
        conditions = [resolve(kind)(picture, draw) for picture, draw in zip(pictures, draws)]
    return {
        "text": [drawn.prompt for drawn in scenes],
        "outline": [draw_condition(drawn, 64) for drawn in scenes],
        "conditioning_pixel_values": torch.stack([as_tensor(condition) for condition in conditions]),
        **encoded(split, count),
    }


@functools.cache
def encoded(split: str, count: int) -> dict:
    """Encode scenes at 64 px and their prompts with the embedded model."""
    import torch

    from diffusers_ext import embedded_model
    from diffusers_ext.diffusion.base import base_of, load_base
    from diffusers_ext.diffusion.encoded import encode_in_memory
    from diffusers_ext.toy.circles import Fill50k

    pipe = load_base(embedded_model())
    encoders = base_of(pipe).encoders
    scenes = Fill50k(count, 64, split=split)
    prompts = [scenes.scene(index).prompt for index in range(count)]
    with torch.no_grad():
        texts = [encoders.embed(prompts[first : first + 50])["text_embeddings"] for first in range(0, count, 50)]
        empty = encoders.embed([""])["text_embeddings"]
    return {"moments": encode_in_memory(scenes, encoders), "text_embeddings": torch.cat(texts), "no_text": empty}


# The bases


@functools.cache
def base_model(name: str, folder: Path, steps: int):
    """Return the pipeline of a base: the embedded model, or the same with a U-Net that is trained here on first use."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from diffusers_ext import embedded_model
    from diffusers_ext.diffusion.base import load_base

    wanted, path = BASES[name], folder / name.replace(", ", "-").replace(" ", "-")
    pipe = load_base(embedded_model())
    if wanted.prediction == "epsilon":
        usual = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
        pipe.register_modules(scheduler=DDIMScheduler.from_config(pipe.scheduler.config, **usual))
    if wanted.channels:
        if not (path / "config.json").exists():
            train_base(pipe, wanted.channels, steps).save_pretrained(path)
        pipe.register_modules(unet=UNet2DConditionModel.from_pretrained(path).requires_grad_(False).eval())
    return pipe


def train_base(pipe, channels: tuple[int, ...], steps: int, batch: int = 32, rate: float = 2e-3):
    """Return a U-Net of these channels, trained on circles with the pipeline's encoders and schedule."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.nn import functional as F
    from tqdm.auto import tqdm

    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of
    from diffusers_ext.randomness import MicroBatches, Share

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "block_out_channels": channels})
    data, count = encoded("train", 4000), 4000
    latents = data["moments"][:, 0] * pipe.vae.config.scaling_factor
    diffusion = Diffusion(path_of(pipe.scheduler), seed=0)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    for keys in tqdm(MicroBatches(count, 0, Share(batch, steps)), desc="small base", unit="step", mininterval=30):
        index = [key[1] for key in keys]
        text = data["text_embeddings"][index]
        text[::10] = data["no_text"]  # a tenth without prompt, for guidance
        noisy, timesteps, target = diffusion.diffuse(latents[index], keys)
        F.mse_loss(unet(noisy, timesteps, text).sample, target).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return unet
