"""What does a training step cost, beside diffusers' own script?

    python benchmarks/controlnet_step.py --reference diffusers/examples/controlnet/train_controlnet.py

Three trainings, each in a process of its own, take turns of a few steps, forwards and backwards (A B C, C B A, ...), while the
others wait: the reference, this project's script, and this project's script on a warm --encoder_cache_dir. Same pictures,
same base, same ControlNet to start from, same batch, float32 on one thread, both logging to TensorBoard. Three rounds of
the embedded model take half an hour on a core. Columns: CPU milliseconds a step; its ratio to the reference's in the same
turn; CPU and wall seconds to the first step; peak memory.

A turn is ten steps, as metrics are written every ten. --model sd15, the architecture of Stable Diffusion 1.5 with random
weights at 256 px, needs 12 GB of memory a process and 6 GB of disk: there the processes run one after the other, and
a turn is one step. Neither script saves or draws while it is timed. The reference is not part of this repository.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT, BenchmarkOptions, Report, run
from spreads import paired_ratio, quartiles

from diffusers_ext.errors import InputError
from diffusers_ext.options import COUNT, option

OURS, CLOCK = ROOT / "training" / "train_controlnet.py", ROOT / "benchmarks" / "step_clock.py"
KINDS = ("reference", "without cache", "warm cache")


@dataclass(frozen=True)
class Setting:
    """Side in pixels, batch size, pictures in the data set, turns, steps of a turn, whether the processes run together."""

    resolution: int
    batch_size: int
    pictures: int
    turns: int
    window: int
    together: bool


SETTINGS = {"embedded": Setting(64, 4, 200, 10, 10, True), "sd15": Setting(256, 1, 8, 3, 1, False)}


@dataclass
class Options(BenchmarkOptions):
    reference: str | None = option(None, "path of diffusers' examples/controlnet/train_controlnet.py")
    model: str = option("embedded", "the base: the embedded model, or SD 1.5's architecture", tuple(SETTINGS))
    steps: int | None = option(None, "optimiser steps timed in a round, after the first; default: 100, sd15 3", COUNT)
    repeats: int = option(3, "rounds; each starts all three scripts once", COUNT)
    train_batch_size: int | None = option(None, "samples per step; default: 4, sd15 1", COUNT)
    scratch: str | None = option(None, "folder for data, models and runs; default: a temporary one, removed afterwards")


def main(options: Options, report: Report) -> None:
    if options.reference is None or not Path(options.reference).is_file():
        raise InputError(
            f"--reference {options.reference}: no such file; give the path of diffusers' train_controlnet.py"
        )
    if options.steps is not None and options.steps < SETTINGS[options.model].window:
        raise InputError(f"--steps {options.steps}: a turn has {SETTINGS[options.model].window}")
    scratch = Path(options.scratch or tempfile.mkdtemp(prefix="controlnet-step-"))
    try:
        records = measure(options, SETTINGS[options.model], scratch)
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch)
    report.table(f"a training step, {options.model}", table(records), FORMATS)


def measure(options: Options, setting: Setting, scratch: Path) -> dict[str, list[dict]]:
    """Return each kind's rounds, as `take_turns` does, after a start that fills the cache."""
    words = commands(options, setting, scratch, *prepare(options.model, setting, scratch))
    turns = setting.turns if options.steps is None else options.steps // setting.window
    groups = [KINDS] if setting.together else [(kind,) for kind in KINDS]
    records: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    Timed(words["warm cache"], 1, scratch / "filling the cache.log").end()
    for number in range(options.repeats):
        for group in groups if number % 2 == 0 else groups[::-1]:
            for kind, record in take_turns(words, group, turns, setting.window, scratch).items():
                records[kind].append(record)
                steps = ", ".join(f"{step:.1f}" for step in record["steps"])
                print(f"round {number + 1}, {kind}: {steps} ms a step", file=sys.stderr, flush=True)
    return records


def take_turns(
    words: dict[str, list[str]], group: Sequence[str], turns: int, window: int, scratch: Path
) -> dict[str, dict]:
    """Return, by kind, "steps", CPU milliseconds a step in each turn, "cpu" and "wall", seconds to the first, "peak" MiB."""
    runs = {kind: Timed(words[kind], window, scratch / f"{kind}.log") for kind in group}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(turns):
        for kind in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            seconds[kind].append(runs[kind].turn())
    records = {}
    for kind, timed in runs.items():
        timed.end()
        steps = [second / window * 1000 for second in seconds[kind]]
        records[kind] = {"steps": steps, "cpu": timed.cpu, "wall": timed.wall, "peak": timed.peak}
    return records


class Timed:
    """A script under the clock, alone on one thread of the CPU while it has its turn."""

    def __init__(self, words: list[str], window: int, log: Path):
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if "--output_dir" in words:
            shutil.rmtree(words[words.index("--output_dir") + 1], ignore_errors=True)
        began = time.perf_counter()
        self.log = log
        with open(log, "w", encoding="utf-8") as file:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": file, "text": True}
            self.process = subprocess.Popen([sys.executable, str(CLOCK), str(window), *words], env=environment, **pipes)
        self.cpu = self._answer()
        self.wall = time.perf_counter() - began

    def turn(self) -> float:
        """Let it do its steps; return the CPU seconds they took."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.communicate()

    def _answer(self) -> float:
        line = self.process.stdout.readline()
        if not line:
            raise InputError(
                f"{self.process.args[3]} ended early; its output ends with\n{self.log.read_text()[-2000:]}"
            )
        answer = json.loads(line)
        self.peak = answer["peak"]
        return answer["cpu"]


def prepare(model: str, setting: Setting, scratch: Path) -> tuple[Path, Path, Path]:
    """Make the base, a ControlNet for it and the pictures, where they are not there yet; return their folders."""
    import torch
    from diffusers import UNet2DConditionModel

    from diffusers_ext.control.hint import new_controlnet
    from diffusers_ext.diffusion.bases.encoders import vae_config, vae_scale_factor
    from diffusers_ext.toy import circles
    from diffusers_ext.toy.embedded import embedded_model

    torch.manual_seed(0)
    data = circles.write(scratch / "pairs", setting.pictures, setting.resolution)
    base, controlnet = Path(embedded_model()) if model == "embedded" else scratch / "base", scratch / "controlnet"
    if not base.exists():
        random_stable_diffusion(base)
    if not controlnet.exists():
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        new_controlnet(unet, vae_scale_factor(vae_config(Path(base) / "vae"))).save_pretrained(controlnet)
    return base, controlnet, data


def random_stable_diffusion(folder: Path) -> None:
    """Save Stable Diffusion 1.5's architecture with random weights, 4 GB, and the embedded model's vocabulary."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from diffusers_ext.toy.embedded import embedded_model

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    tokenizer = CLIPTokenizer.from_pretrained(Path(embedded_model()) / "tokenizer", model_max_length=77)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    parts = (vae, text, tokenizer, unet, scheduler, None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)


def commands(
    options: Options, setting: Setting, scratch: Path, base: Path, controlnet: Path, data: Path
) -> dict[str, list[str]]:
    """Return each kind's script and arguments."""
    never = 10**6
    settings = {
        "pretrained_model_name_or_path": base,
        "controlnet_model_name_or_path": controlnet,
        "train_data_dir": data,
        "image_column": "image",
        "conditioning_image_column": "conditioning_image",
        "caption_column": "text",
        "resolution": setting.resolution,
        "train_batch_size": options.train_batch_size or setting.batch_size,
        "learning_rate": 1e-5,
        "seed": 0,
        "report_to": "tensorboard",
        "max_train_steps": never,
        "checkpointing_steps": never,
        "validation_steps": never,
    }
    own = {
        "reference": (options.reference, {"cache_dir": scratch / "datasets"}),
        "without cache": (OURS, {}),
        "warm cache": (OURS, {"encoder_cache_dir": scratch / "cache"}),
    }
    return {
        kind: [str(script), *flags({**settings, **more, "output_dir": scratch / f"run, {kind}"})]
        for kind, (script, more) in own.items()
    }


def flags(settings: dict) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


FORMATS = {"CPU ms a step": ".1f", "to the first step, CPU s": ".1f", "wall s": ".1f", "peak MiB": ".0f"}


def table(records: dict[str, list[dict]]) -> list[dict]:
    """Return medians over all turns and rounds, and ratios within turns."""
    reference = steps_of(records["reference"])
    return [
        {
            "side": kind,
            "CPU ms a step": quartiles(steps_of(rounds)),
            "of the reference": paired_ratio(steps_of(rounds), reference),
            "to the first step, CPU s": quartiles([record["cpu"] for record in rounds]),
            "wall s": quartiles([record["wall"] for record in rounds]),
            "peak MiB": quartiles([record["peak"] for record in rounds]),
        }
        for kind, rounds in records.items()
    ]


def steps_of(rounds: list[dict]) -> list[float]:
    return [step for record in rounds for step in record["steps"]]


if __name__ == "__main__":
    run(main, Options)
