"""What do the kinds of ControlNet cost: weights, what learns, operations of a step; and how long is a step?

    python benchmarks/control_variants.py                 # two minutes on a core
    python benchmarks/control_variants.py --rounds 0      # only count

Weights and operations are counted on the architectures of SD 1.5 at 512 px and SDXL at 1024 px, without any memory for
them: forward and backward pass of ControlNet and U-Net, one sample; encoders and SDXL's added embedding are left out.
The CPU time is that of interleaved steps with their optimiser, of the embedded model at 64 px; "of full" is the ratio
within a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import BenchmarkOptions, Report, run, take_turns
from spreads import paired_ratio, quartiles

from diffusers_ext.options import COUNT, NATURAL, OptimizerOptions, RunOptions, option

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from diffusers_ext.control.objective import ControlObjective

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
COUNTED = {"weights, M": ",.0f", "learn, M": ",.1f", "TFLOP a step and sample": ".2f"}
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
class Options(OptimizerOptions, RunOptions, BenchmarkOptions):
    batch_size: int = option(4, "samples per timed step", COUNT)
    rounds: int = option(20, "timed steps of each variant; 0 only counts", NATURAL)


def main(options: Options, report: Report) -> None:
    for name, config in (("SD 1.5, 512 px", SD), ("SDXL, 1024 px", SDXL)):
        report.table(name, [{"ControlNet": variant, **counted(variant, config)} for variant in VARIANTS], COUNTED)
    if options.rounds:
        turns = take_turns(steps(options), options.rounds, warm_up=1)
        seconds = {variant: [turn.cpu for turn in timings] for variant, timings in turns.items()}
        rows = [
            {
                "ControlNet": variant,
                "CPU ms a step": quartiles([1000 * value for value in values]),
                "of full": paired_ratio(values, seconds["full"]),
            }
            for variant, values in seconds.items()
        ]
        report.table("embedded model, 64 px", rows, {"CPU ms a step": ".0f", "of full": ".2f"})


def counted(variant: str, config: dict) -> dict[str, float]:
    """Return the weights of a ControlNet in millions, how many of them learn, and the operations of a step."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        objective = make(UNet2DConditionModel(**config), variant, 8)
        with FlopCounterMode(display=False) as counter:
            step(objective, 1, config["sample_size"], 8)
    learn = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    return dict(zip(COUNTED, (size(objective) / 1e6, learn / 1e6, counter.get_total_flops() / 1e12)))


def make(unet: UNet2DConditionModel, variant: str, factor: int) -> ControlObjective:
    import torch
    from diffusers import DDPMScheduler

    from diffusers_ext.control.hint import new_controlnet
    from diffusers_ext.control.lora import add_lora
    from diffusers_ext.control.objective import ControlObjective, Variant
    from diffusers_ext.diffusion.base import Base, family_of
    from diffusers_ext.diffusion.bases.encoders import Encoders
    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of

    switches = dict(VARIANTS[variant])
    rank, controlnet = switches.pop("rank", None), new_controlnet(unet, factor, blocks=switches.get("blocks"))
    if rank:
        add_lora(controlnet, unet, rank)
    with torch.device("cpu"):  # of the networks only shapes are counted, but a path is made of numbers
        diffusion = Diffusion(path_of(DDPMScheduler()), seed=0)
    return ControlObjective(controlnet, Base(family_of(unet), unet, Encoders(None)), diffusion, Variant(**switches))


def size(objective: ControlObjective) -> int:
    """Weights of the plain ControlNet that the run saves."""
    return sum(tensor.numel() for name, tensor in objective.controlnet.state_dict().items() if ".lora_" not in name)


def step(objective: ControlObjective, batch: int, side: int, factor: int) -> None:
    """Forward and backward pass; the values do not matter."""
    import torch

    from diffusers_ext.diffusion.conditioning import Conditioning

    config = objective.base.network.config
    text, times = torch.zeros(batch, 77, config.cross_attention_dim), torch.zeros(batch, dtype=torch.long)
    pixels = torch.zeros(batch, 3, side * factor, side * factor)
    noisy = torch.ones(batch, config.in_channels, side, side)
    objective.predict(noisy, times, Conditioning(text), pixels).square().mean().backward()


def steps(options: Options) -> dict[str, Callable[[], None]]:
    """Return a step with its optimiser for each variant, on the embedded model's U-Net."""
    from diffusers import UNet2DConditionModel

    from diffusers_ext import embedded_model
    from diffusers_ext.engine.optimizers import adamw

    def trainer(variant: str) -> Callable[[], None]:
        objective = make(UNet2DConditionModel.from_pretrained(embedded_model(), subfolder="unet"), variant, 4)
        optimizer = adamw([parameter for parameter in objective.parameters() if parameter.requires_grad], options, 1)

        def act() -> None:
            step(objective, options.batch_size, 16, 4)
            optimizer.step()
            optimizer.zero_grad()

        return act

    return {variant: trainer(variant) for variant in VARIANTS}


if __name__ == "__main__":
    run(main, Options)
