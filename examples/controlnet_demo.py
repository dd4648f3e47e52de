"""Teach the embedded model to obey an outline, and show that it does. No download; about six minutes on two cores.

    python examples/controlnet_demo.py --output_dir runs/demo

Makes circles, trains a ControlNet with training/train_controlnet.py, saves the whole pipeline, and in a fresh process
loads it again with DiffusionPipeline.from_pretrained and measures it on outlines and colours it never saw. The run
folder then holds the model and its card, `pipeline/`, `grid.png` and `results.json`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, POSITIVE, option, run

ROOT = Path(__file__).parents[1]
SIZE, HELD_OUT, SHOWN = 64, 32, 7
DRAWING = {"num_inference_steps": 20, "guidance_scale": 2.0}


@dataclass
class Options:
    output_dir: str = option("runs/demo", "the run folder")
    max_train_steps: int = option(1000, "optimiser steps of the training", COUNT)
    train_batch_size: int = option(8, "samples per step", COUNT)
    learning_rate: float = option(1e-3, "learning rate", POSITIVE)
    evaluate: bool = option(False, "only load the saved pipeline and measure it: the demo's second process")


def main(options: Options) -> None:
    folder = Path(options.output_dir)
    if options.evaluate:
        return evaluate(folder)
    train(options, folder)
    step(3, f"saving base and ControlNet as one pipeline in {folder / 'pipeline'}")
    save_pipeline(folder)
    step(4, f"in a new process: loading the pipeline and measuring it on {HELD_OUT} outlines it never saw")
    subprocess.run([sys.executable, __file__, "--output_dir", str(folder), "--evaluate"], check=True)


def step(number: int, text: str) -> None:
    """Say which of the demo's steps begins."""
    print(f"\n[{number}/4] {text}", flush=True)


def train(options: Options, folder: Path) -> None:
    """Make the data and run the training script, as a user would."""
    from diffusers_ext.toy import circles as fill50k

    step(1, f"drawing 2,000 pairs of outline and circle in {folder.parent / 'fill50k-train'}")
    data = fill50k.write(folder.parent / "fill50k-train", count=2000, size=SIZE)
    test = fill50k.write(folder.parent / "fill50k-test", count=HELD_OUT, size=SIZE, split="test")
    shown = range(4)
    launcher = {"num_processes": 1, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    settings = {
        "train_data_dir": data,
        "output_dir": folder,
        "resolution": SIZE,
        "max_train_steps": options.max_train_steps,
        "train_batch_size": options.train_batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": min(50, options.max_train_steps // 4),
        "validation_steps": 200,
        "checkpointing_steps": 200,
        "checkpoints_total_limit": 1,
        "resume_from_checkpoint": "latest",
        "validation_image": [test / f"conditions/{index:06d}.png" for index in shown],
        "validation_prompt": [fill50k.scene(index, split="test").prompt for index in shown],
    }
    script = str(ROOT / "training" / "train_controlnet.py")
    step(2, f"training a ControlNet for {options.max_train_steps:,} steps with training/train_controlnet.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags(launcher), script, *flags(settings)]
    subprocess.run(command, check=True, env={**os.environ, "ACCELERATE_USE_CPU": "true"})


def flags(settings: dict) -> list[str]:
    """{"a": 1, "b": [2, 3]} -> --a 1 --b 2 3"""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def save_pipeline(folder: Path) -> None:
    """Join base and ControlNet into one folder that any diffusers program loads."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    from diffusers_ext import embedded_model

    controlnet = ControlNetModel.from_pretrained(folder)
    parts = {"controlnet": controlnet, "safety_checker": None, "requires_safety_checker": False}
    StableDiffusionControlNetPipeline.from_pretrained(embedded_model(), **parts).save_pretrained(folder / "pipeline")


def evaluate(folder: Path) -> None:
    """Draw the held-out outlines with and without control, measure both, write grid.png and results.json."""
    from diffusers import DiffusionPipeline
    from PIL import Image

    from diffusers_ext import condition_following, embedded_model
    from diffusers_ext.diffusion.draw import draw
    from diffusers_ext.figures import labelled_grid
    from diffusers_ext.toy import circles as fill50k

    scenes = [fill50k.scene(index, split="test") for index in range(HELD_OUT)]
    prompts = [scene.prompt for scene in scenes]
    conditions = [Image.fromarray(fill50k.draw_condition(scene, SIZE)) for scene in scenes]
    plain = draw(DiffusionPipeline.from_pretrained(embedded_model()), prompts, **DRAWING)
    ours = draw(DiffusionPipeline.from_pretrained(folder / "pipeline"), prompts, image=conditions, **DRAWING)

    columns = [f"{scene.circle} on {scene.background}" for scene in scenes[:SHOWN]]
    rows = [kind[:SHOWN] for kind in (conditions, plain, ours)]
    labels = ["condition", "base model, no control", "ours"]
    labelled_grid(rows, columns, labels, cell=144).save(folder / "grid.png")
    results = {
        name: condition_following(images, conditions, prompts).summary()
        for name, images in (("no control", plain), ("ours", ours))
    }
    (folder / "results.json").write_text(
        json.dumps({"held_out": HELD_OUT, **results}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{HELD_OUT} held-out outlines       no control      ours")
    for name, unit in (
        ("iou", "mean IoU"),
        ("circle_error", "circle ΔE2000, median"),
        ("background_error", "background ΔE2000, median"),
    ):
        print(f"  {unit:<26} {results['no control'][name]:>10.3f} {results['ours'][name]:>9.3f}")
    print(f"see {folder / 'grid.png'} and {folder / 'README.md'}")


if __name__ == "__main__":
    run(main, Options)
