"""What the kinds of ControlNet cost: weights, what learns, what a step computes; and on the embedded model, how long.

    python benchmarks/control_variants.py

Weights and operations are counted on the architectures of SD 1.5 at 512 px and SDXL at 1024 px, without any memory for
them: forward and backward pass of ControlNet and U-Net, one sample, encoders and SDXL's added
embedding left out. The CPU time of a step, with its
optimiser, is the median of interleaved steps of the embedded model at 64 px. Minutes on one core.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from diffusers_ext import embedded_model
from diffusers_ext.control.hint import new_controlnet
from diffusers_ext.control.lora import add_lora
from diffusers_ext.control.objective import ControlObjective, Variant
from diffusers_ext.diffusion.base import Base, family_of
from diffusers_ext.diffusion.bases.encoders import Encoders
from diffusers_ext.diffusion.conditioning import Conditioning
from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import path_of
from diffusers_ext.engine.optimizers import adamw
from diffusers_ext.options import COUNT, OptimizerOptions, RunOptions, option, run

SD = {"sample_size": 64, "cross_attention_dim": 768}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}
VARIANTS = {
    "full": {},
    "--only_mid_control": {"only_mid_control": True},
    "--controlnet_blocks 1": {"blocks": 1},
    "--controlnet_blocks 2": {"blocks": 2},
    "--lora_rank 16": {"rank": 16},
    "--lora_rank 64": {"rank": 64},
    "--unlock_decoder": {"unlock_decoder": True},
}


@dataclass
class Options(OptimizerOptions, RunOptions):
    batch_size: int = option(4, "samples per timed step", COUNT)
    rounds: int = option(20, "timed steps of each variant; 0 only counts", COUNT)


def main(options: Options) -> None:
    for name, config in (("SD 1.5, 512 px", SD), ("SDXL, 1024 px", SDXL)):
        print(f"\n| {name} | weights of the ControlNet | learn | TFLOP a step and sample |\n|---|---|---|---|")
        for variant in VARIANTS:
            with torch.device("meta"):
                objective = make(UNet2DConditionModel(**config), variant, 8)
                with FlopCounterMode(display=False) as counter:
                    step(objective, 1, config["sample_size"], 8)
            learn = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
            print(
                f"| {variant} | {size(objective) / 1e6:,.0f}M | {learn / 1e6:,.1f}M | {counter.get_total_flops() / 1e12:.2f} |"
            )
    if options.rounds:
        print("\n| embedded model, 64 px | CPU ms a step | ratio |\n|---|---|---|")
        times = timed(options)
        for variant, seconds in times.items():
            print(f"| {variant} | {1000 * seconds:.0f} | {seconds / times['full']:.2f} |")


def make(unet: UNet2DConditionModel, variant: str, factor: int) -> ControlObjective:
    switches = dict(VARIANTS[variant])
    rank, controlnet = switches.pop("rank", None), new_controlnet(unet, factor, blocks=switches.get("blocks"))
    if rank:
        add_lora(controlnet, unet, rank)
    base = Base(family_of(unet), unet, Encoders(None))
    return ControlObjective(controlnet, base, Diffusion(path_of(DDPMScheduler()), seed=0), Variant(**switches))


def size(objective: ControlObjective) -> int:
    """Weights of the plain ControlNet that the run saves."""
    return sum(tensor.numel() for name, tensor in objective.controlnet.state_dict().items() if ".lora_" not in name)


def step(objective: ControlObjective, batch: int, side: int, factor: int) -> None:
    """Forward and backward pass; the values do not matter."""
    config = objective.base.network.config
    text, times = torch.zeros(batch, 77, config.cross_attention_dim), torch.zeros(batch, dtype=torch.long)
    pixels = torch.zeros(batch, 3, side * factor, side * factor)
    noisy = torch.ones(batch, config.in_channels, side, side)
    objective.predict(noisy, times, Conditioning(text), pixels).square().mean().backward()


def timed(options: Options) -> dict[str, float]:
    """Median CPU seconds of a step with its optimiser."""
    runs = {}
    for variant in VARIANTS:
        objective = make(UNet2DConditionModel.from_pretrained(embedded_model(), subfolder="unet"), variant, 4)
        learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        runs[variant] = (objective, adamw(learned, options, 1), [])
    for turn in range(options.rounds + 1):
        for objective, optimizer, seconds in runs.values():
            began = time.process_time()
            step(objective, options.batch_size, 16, 4)
            optimizer.step()
            optimizer.zero_grad()
            if turn:  # the first one warms up
                seconds.append(time.process_time() - began)
    return {variant: statistics.median(seconds) for variant, (_, _, seconds) in runs.items()}


if __name__ == "__main__":
    run(main, Options)
