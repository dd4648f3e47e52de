"""Measure on what no training saw, picture by picture: the base beside the tuned model, and each ControlNet beside none.

    python examples/story/measure.py --folder runs/story

The exact colour reward and the circle's IoU need no model (toy/measures.py). Both sides draw from the same noise, so that
differences are paired. measured.json has every value, tuned.png and control.png the first pictures.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, option, run

DRAWING = {"num_inference_steps": 5, "guidance_scale": 1.0}
SEED, SHOWN = 200_000, 7  # the first seed, which no other step uses; pictures of a row


@dataclass
class Options:
    folder: str = option("runs/story", "the story's folder")
    each: int = option(8, "pictures of each held-out prompt", COUNT)
    outlines: int = option(48, "outlines, of colour pairs that were never trained on", COUNT)


def main(options: Options) -> None:
    folder = Path(options.folder)
    measured = {"tuned": tuned(folder, options.each), "control": controlled(folder, options.outlines)}
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"{folder}: measured.json, tuned.png, control.png")


def tuned(folder: Path, each: int) -> dict:
    """Return {"prompts", "base", "tuned"}: values of all pictures, a list per prompt; area is the circle's share of it."""
    import numpy as np
    from diffusers import DiffusionPipeline

    from diffusers_ext import embedded_model
    from diffusers_ext.data.tensors import as_uint8
    from diffusers_ext.diffusion.draw import draw
    from diffusers_ext.figures import labelled_grid
    from diffusers_ext.lines import read_lines
    from diffusers_ext.toy.measures import circle_likeness, colour_error, find_circle

    prompts = read_lines(folder / "held-out.txt")
    asked = [prompt for prompt in prompts for _ in range(each)]
    pipe, values, rows = DiffusionPipeline.from_pretrained(embedded_model()), {}, []
    for name in ("base", "tuned"):
        if name == "tuned":
            pipe.load_lora_weights(folder / "tuned")
        pictures = draw(pipe, asked, SEED, **DRAWING)
        rows.append(pictures[::each][:SHOWN])
        exact = -sum(colour_error(pictures, asked)) / 2
        area = np.array([find_circle(picture).mean() for picture in as_uint8(pictures)])
        found = {"exact": exact, "circle": circle_likeness(pictures), "area": area}
        values[name] = {part: split(row, each) for part, row in found.items()}
    columns = [prompt.replace(" background", "").replace(" circle with ", " on ") for prompt in prompts[:SHOWN]]
    labelled_grid(rows, columns, ["the base", "tuned, from the same noise"]).save(folder / "tuned.png")
    return {"prompts": prompts, **values}


def controlled(folder: Path, count: int) -> dict:
    """Return {"none", "controlnet", "controlnet-closer"}: IoU and colour errors of each outline's picture."""
    from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionControlNetPipeline
    from PIL import Image

    from diffusers_ext import condition_following, embedded_model
    from diffusers_ext.diffusion.draw import draw
    from diffusers_ext.figures import labelled_grid
    from diffusers_ext.toy import circles as fill50k

    scenes = [fill50k.scene(index, split="test") for index in range(count)]
    prompts = [scene.prompt for scene in scenes]
    outlines = [Image.fromarray(fill50k.draw_condition(scene, 64)) for scene in scenes]
    base = DiffusionPipeline.from_pretrained(embedded_model())
    drawn = {"none": draw(base, prompts, SEED, **DRAWING)}
    for name in ("controlnet", "controlnet-closer"):
        controlnet = ControlNetModel.from_pretrained(folder / name)
        pipe = StableDiffusionControlNetPipeline(
            **base.components, controlnet=controlnet, requires_safety_checker=False
        )
        drawn[name] = draw(pipe, prompts, SEED, image=outlines, **DRAWING)
    columns = [f"{scene.circle} on {scene.background}" for scene in scenes[:SHOWN]]
    labels = ["outline", "no control", "ControlNet", "the same, tuned by the outline"]
    rows = [outlines[:SHOWN], *(pictures[:SHOWN] for pictures in drawn.values())]
    labelled_grid(rows, columns, labels).save(folder / "control.png")
    found = {name: condition_following(pictures, outlines, prompts) for name, pictures in drawn.items()}
    return {name: {part: row.tolist() for part, row in vars(each).items()} for name, each in found.items()}


def split(values, each: int) -> list[list[float]]:
    """(P·each,) -> P lists."""
    return values.reshape(-1, each).round(4).tolist()


if __name__ == "__main__":
    run(main, Options)
