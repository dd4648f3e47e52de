"""How much of a hint network's signal depends on its condition, at the sizes of SD 1.5 (512 px) and SDXL (1024 px)?

    python benchmarks/hint_signal.py --pictures ../shared/assets/data/imagenet_sample160.zip

The network is the real one (eight convolutions, 1.1 M parameters); no base model is needed. The measure is the standard
deviation between images over the mean absolute activation, before the zero convolution, for each initialisation and four
kinds of condition. Prints a markdown table; under a minute on one core at 512 px, five at 1024.
"""

import zipfile
from dataclasses import dataclass
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from PIL import Image

from diffusers_ext import randomness
from diffusers_ext.conditions.catalogue import CONDITIONS
from diffusers_ext.control.hint import HINT_CHANNELS, init_hint
from diffusers_ext.data.geometry import cover
from diffusers_ext.data.tensors import as_tensor
from diffusers_ext.options import COUNT, SEED, option, run
from diffusers_ext.toy import circles as fill50k

KINDS = ("canny", "softedge", "palette_grid")


@dataclass
class Options:
    pictures: str = option(
        "../shared/assets/data/imagenet_sample160.zip", "zip of photographs the conditions are taken from"
    )
    count: int = option(16, "conditions per kind", COUNT)
    sizes: list[int] | None = option(None, "sides in pixels; default: 512 and 1024", COUNT)
    seed: int = option(0, "of the networks and the conditions", SEED)


def main(options: Options) -> None:
    print("| size | condition | " + " | ".join(("default", "kaiming", "data")) + " |\n|---|---|---|---|---|")
    for size in options.sizes or (512, 1024):
        for kind, conditions in condition_sets(options, size).items():
            ratios = [ratio(method, conditions, options.seed) for method in ("default", "kaiming", "data")]
            print(f"| {size} px | {kind} | " + " | ".join(f"{value:.2%}" for value in ratios) + " |", flush=True)


def condition_sets(options: Options, size: int) -> dict[str, torch.Tensor]:
    """Return {kind: (count, 3, size, size) in [0, 1]}."""
    with zipfile.ZipFile(options.pictures) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png", ".webp", ".JPEG")))
        names = names[:: max(1, len(names) // options.count)][: options.count]
        pictures = [np.array(cover(Image.open(BytesIO(archive.read(name))).convert("RGB"), size)) for name in names]
    outlines = [fill50k.draw_condition(fill50k.scene(index), size) for index in range(options.count)]
    sets = {"outline": torch.stack([as_tensor(outline) for outline in outlines])}
    for kind in KINDS:
        draws = [randomness.generator(options.seed, "condition", 0, index) for index in range(len(pictures))]
        sets[kind] = torch.stack([as_tensor(CONDITIONS[kind](picture, draw)) for picture, draw in zip(pictures, draws)])
    return sets


def ratio(method: str, conditions: torch.Tensor, seed: int) -> float:
    torch.manual_seed(seed)
    hint = ControlNetConditioningEmbedding(320, 3, HINT_CHANNELS)
    return init_hint(SimpleNamespace(controlnet_cond_embedding=hint), method, conditions, seed)


if __name__ == "__main__":
    run(main, Options)
