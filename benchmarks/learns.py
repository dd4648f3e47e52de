"""Does a ControlNet learn to obey, how soon, and with every seed?

    python benchmarks/learns.py --output_dir runs/learns                        # a quarter of an hour on a core
    python benchmarks/learns.py --seeds 0 --steps 200 --pictures 32             # two minutes

Trains training/train_controlnet.py on 2,000 of fill50k's circles with the embedded model. Columns, for each seed and
step: the gap on held-out pairs (how much worse the loss is with another picture's condition, in percent); on outlines of
the test split the drawn circles' IoU, the share of pictures with an IoU above 0.7, and the CIEDE2000 of both colours.
The first row is the base without control. --shuffle gives every picture another one's condition: what a run looks like
that cannot learn. Finished runs are only measured, interrupted ones are resumed.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT, BenchmarkOptions, Report, run

from diffusers_ext.options import COUNT, POSITIVE, SEED, option

SIDE = 64


@dataclass
class Options(BenchmarkOptions):
    output_dir: str = option("runs/learns", "folder of the data, with a run folder for each seed")
    seeds: list[int] = option([0, 1, 2], "seeds of the runs", SEED)
    steps: list[int] = option([200, 400, 800], "steps to measure at; the last one ends the run", COUNT)
    pictures: int = option(64, "outlines of the test split to draw at each measurement", COUNT)
    train_batch_size: int = option(8, "samples per step", COUNT)
    learning_rate: float = option(1e-3, "learning rate", POSITIVE)
    hint_init: str = option("data", "initialisation of the hint network", ("data", "kaiming", "default"))
    shuffle: bool = option(False, "train on conditions that belong to other pictures")


def main(options: Options, report: Report) -> None:
    from diffusers_ext import embedded_model
    from diffusers_ext.diffusion.base import load_base

    folder = Path(options.output_dir)
    data = make_data(folder, options.shuffle)
    pipe = load_base(embedded_model())
    rows = [{"run": "no control", "step": None, "gap": None, **measure(pipe, options.pictures)}]
    for seed in options.seeds:
        name = "-".join(["shuffled"] * options.shuffle + [options.hint_init, f"seed-{seed}"])
        train(options, folder / name, data, seed)
        for step in options.steps:
            measures = measure(pipe, options.pictures, folder / name, step)
            rows.append({"run": name, "step": step, "gap": gap(folder / name, step), **measures})
    report.table("circles", rows, {"circle ΔE2000": ".1f", "background ΔE2000": ".1f", "share of IoU > 0.7": ".2f"})


def make_data(folder: Path, shuffle: bool) -> Path:
    """Write the circles, and beside their metadata.jsonl one in which each picture has the next one's condition."""
    from diffusers_ext.toy import circles as fill50k

    data = folder / "circles"
    if not (data / "metadata.jsonl").exists():
        fill50k.write(data, count=2000, size=SIDE)
    if not shuffle:
        return data
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    table = [
        {
            "image": row["file_name"],
            "conditioning_image": following["conditioning_image_file_name"],
            "text": row["text"],
        }
        for row, following in zip(rows, rows[1:] + rows[:1])
    ]
    (data / "shuffled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return data / "shuffled.jsonl"


def train(options: Options, run_folder: Path, data: Path, seed: int) -> None:
    """Run the training script as a user would, or finish a run that was interrupted."""
    from diffusers_ext.toy import circles as fill50k

    launcher = {"num_processes": 1, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    settings = {
        "train_data_dir": data,
        "output_dir": run_folder,
        "resolution": SIDE,
        "seed": seed,
        "max_train_steps": options.steps[-1],
        "train_batch_size": options.train_batch_size,
        "learning_rate": options.learning_rate,
        "hint_init": options.hint_init,
        "encoder_cache_dir": run_folder.parent / "cache",
        "validation_steps": options.steps[0],
        "checkpointing_steps": options.steps[0],
        "validation_image": run_folder.parent / "circles/conditions/000000.png",
        "validation_prompt": fill50k.scene(0).prompt,
        "num_validation_images": 1,
        "resume_from_checkpoint": "latest",
    }
    script = str(ROOT / "training" / "train_controlnet.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags(launcher), script, *flags(settings)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def flags(settings: dict) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def gap(run_folder: Path, step: int) -> float:
    from diffusers_ext.engine.run_folder import read_metrics

    return next(row["gap"] for row in read_metrics(run_folder) if "gap" in row and row["step"] == step)


def measure(pipe, pictures: int, run_folder: Path | None = None, step: int = 0) -> dict[str, float]:
    """Draw the test split's first outlines at a checkpoint, or without control, and return their measures."""
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    from diffusers_ext import condition_following
    from diffusers_ext.data.tensors import as_tensor
    from diffusers_ext.diffusion.draw import draw
    from diffusers_ext.toy import circles as fill50k

    scenes = [fill50k.scene(index, split="test") for index in range(pictures)]
    conditions = torch.stack([as_tensor(fill50k.draw_condition(scene, SIDE)) for scene in scenes])
    prompts, drawing = [scene.prompt for scene in scenes], {"num_inference_steps": 20, "guidance_scale": 2.0}
    if run_folder is None:
        images = draw(pipe, prompts, **drawing)
    else:
        controlnet = ControlNetModel.from_pretrained(run_folder / f"checkpoint-{step}", subfolder="controlnet")
        ours = StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=controlnet, requires_safety_checker=False
        )
        images = draw(ours, prompts, image=list(conditions), **drawing)
    following = condition_following(images, conditions, prompts)
    means = following.summary()
    return {
        "IoU": means["iou"],
        "share of IoU > 0.7": float((following.iou > 0.7).mean()),
        "circle ΔE2000": means["circle_error"],
        "background ΔE2000": means["background_error"],
    }


if __name__ == "__main__":
    run(main, Options)
