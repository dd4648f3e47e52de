"""How much of a hint network's signal depends on its condition, at the sizes of SD 1.5 (512 px) and SDXL (1024 px)?

    python benchmarks/hint_signal.py --pictures path/to/photographs.zip      # a minute at 512 px, five at 1024

The network is the real one (eight convolutions, 1.1 M parameters); no base model is needed. The figure is the standard
deviation between images over the mean absolute activation, before the zero convolution, in percent: a column for each
initialisation of the hint network, a row for each size and kind of condition.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING

from harness import BenchmarkOptions, Report, run

from diffusers_ext.options import COUNT, SEED, option

if TYPE_CHECKING:
    import torch

KINDS = ("outline", "canny", "softedge", "palette_grid")
INITS = ("default", "kaiming", "data")


@dataclass
class Options(BenchmarkOptions):
    pictures: str | None = option(
        None, "zip of photographs to take conditions from; default: only outlines of circles", path="read"
    )
    count: int = option(16, "conditions per kind", COUNT)
    sizes: list[int] | None = option(None, "sides in pixels; default: 512 and 1024", COUNT)
    seed: int = option(0, "seed of the networks and the conditions", SEED)


def main(options: Options, report: Report) -> None:
    rows = []
    for size in options.sizes or (512, 1024):
        for kind, conditions in condition_sets(options, size).items():
            ratios = {f"{init}, %": 100 * ratio(init, conditions, options.seed) for init in INITS}
            rows.append({"size, px": size, "condition": kind, **ratios})
    report.table("signal that depends on the condition", rows, ".2f")


def condition_sets(options: Options, size: int) -> dict[str, torch.Tensor]:
    """Return {kind: (count, 3, size, size) in [0, 1]}."""
    import torch

    from diffusers_ext import randomness
    from diffusers_ext.conditions.catalogue import CONDITIONS
    from diffusers_ext.data.tensors import as_tensor
    from diffusers_ext.toy import circles

    outlines = [circles.draw_condition(circles.scene(index), size) for index in range(options.count)]
    sets = {"outline": torch.stack([as_tensor(outline) for outline in outlines])}
    if options.pictures is None:
        return sets
    pictures = photographs(options.pictures, options.count, size)
    for kind in KINDS[1:]:
        draws = [randomness.generator(options.seed, "condition", 0, index) for index in range(len(pictures))]
        sets[kind] = torch.stack([as_tensor(CONDITIONS[kind](picture, draw)) for picture, draw in zip(pictures, draws)])
    return sets


def photographs(path: str, count: int, size: int) -> list:
    """Return photographs of a zip, spread over its names, cut to squares: (size, size, 3) uint8."""
    import numpy as np
    from PIL import Image

    from diffusers_ext.data.geometry import cover

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".png", ".webp", ".jpeg")))
        names = names[:: max(1, len(names) // count)][:count]
        return [np.array(cover(Image.open(BytesIO(archive.read(name))).convert("RGB"), size)) for name in names]


def ratio(method: str, conditions: torch.Tensor, seed: int) -> float:
    """Return the share of the signal that depends on the condition, under an initialisation."""
    import torch
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    from diffusers_ext.control.hint import init_hint
    from diffusers_ext.diffusion.bases.unet import HINT_CHANNELS

    torch.manual_seed(seed)
    hint = ControlNetConditioningEmbedding(320, 3, HINT_CHANNELS)
    return init_hint(SimpleNamespace(controlnet_cond_embedding=hint), method, conditions, seed)


if __name__ == "__main__":
    run(main, Options)
