"""How many steps until a ControlNet follows, under each initialisation of its hint network?

    python benchmarks/hint_init.py --output_dir runs/hint-init

The unchanged method, a frozen base, circles at 64 px; only the hint network's start differs (`control.hint.init_hint`).
Followed means: mean IoU 0.5 of the drawn circle with the disc its condition shows, on held-out pairs. For each of four
bases (BASES), the learning rate and batch that serve PyTorch's default initialisation best are found first; then every
initialisation trains with those, on four kinds of condition, five seeds each. Every finished run is one row of
results.jsonl; the same command goes on where it stopped, and ends with summary.md and hint_init.png. About two hours on
one core; cost grows with bases x kinds x seeds x steps to follow.
"""

import functools
import gc
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, POSITIVE, option, run

INITS, KINDS = ("default", "kaiming", "data"), ("outline", "canny", "softedge", "palette_grid")
FOLLOWED, BLIND, HELD_OUT, SCENES = 0.5, 0.05, 24, 1000
# Steps at which IoU is measured.
LOOKS = {*range(4, 24, 4), *range(25, 50, 5), *range(50, 100, 10), *range(100, 300, 25), *range(300, 2000, 50)}


@dataclass(frozen=True)
class Base:
    """channels: of the U-Net, None for the embedded one. side: of the conditions, in pixels; 128 needs SD 1.5's own hint
    network of eight convolutions, 64 one of six."""

    prediction: str
    channels: tuple[int, ...] | None = None
    side: int = 64


BASES = {
    "small": Base("v_prediction", (24, 32, 48)),
    "small, epsilon": Base("epsilon", (24, 32, 48)),
    "embedded": Base("v_prediction"),
    "embedded, deep hint": Base("v_prediction", side=128),
}


@dataclass
class Options:
    output_dir: str = option("runs/hint-init", "where results.jsonl, the small bases, summary.md and the plot go")
    bases: list[str] = option(list(BASES), "bases to train on")
    kinds: list[str] = option(list(KINDS), "kinds of condition")
    inits: list[str] = option(list(INITS), "initialisations")
    seeds: int = option(5, "runs of each", COUNT)
    limit: int = option(1200, "steps after which a run is given up", COUNT)
    sweep_seeds: int = option(2, "seeds of the sweep of learning rate and batch for the default initialisation", COUNT)
    sweep_rates: list[float] = option([3e-4, 1e-3, 3e-3], "learning rates of the sweep", POSITIVE)
    sweep_batches: list[int] = option([8, 32], "batch sizes of the sweep", COUNT)
    base_steps: int = option(1500, "training steps of a small base", COUNT)


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


def main(options: Options) -> None:
    import torch

    torch.set_num_threads(1)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sweeps, settings = [], {}
    for base in options.bases:
        sweep = [
            Run(base, options.kinds[0], "default", rate, batch, seed, options.limit * 8 // batch)
            for batch in options.sweep_batches
            for rate in options.sweep_rates
            for seed in range(options.sweep_seeds)
        ]
        finish(folder, sweep, options)
        settings[base] = best_setting(read(folder), sweep)
        print(f"{base}: the default initialisation is best at learning rate, batch {settings[base]}", flush=True)
        sweeps += sweep
    runs = [
        Run(base, kind, init, *settings[base], seed, options.limit)
        for seed in range(options.seeds)  # outermost: an interrupted benchmark still compares like with like
        for base in options.bases
        for kind in options.kinds
        for init in options.inits
    ]
    finish(folder, runs, options)
    report(folder, sweeps, runs)


def finish(folder: Path, runs: list[Run], options: Options) -> None:
    """Do what is not among the results yet."""
    done = read(folder)
    for position, each in enumerate(runs):
        if each not in done:
            gc.collect()  # networks and their graphs lie in cycles
            began = time.process_time()
            curve = train(each, folder, options.base_steps)
            row = {**asdict(each), "curve": curve, "cpu_seconds": round(time.process_time() - began, 1)}
            with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{position + 1}/{len(runs)} {each}: {shown(steps_to_follow(curve), each.limit)}", flush=True)


def read(folder: Path) -> dict[Run, list[list[float]]]:
    """Return {run: its curve, rows of (step, IoU, relative gap)}."""
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return {Run(**{name: row[name] for name in Run.__dataclass_fields__}): row["curve"] for row in rows}


# --- one run -------------------------------------------------------------------------------------------------------


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
    """Mean IoU of drawn circles with the discs of the held-out scenes; one fixed noise per picture, DDIM.

    Drawn by hand: a pipeline would resize the conditions to the pictures.
    """
    import torch

    from diffusers_ext import randomness
    from diffusers_ext.toy.measures import condition_following

    condition = held_out["conditioning_pixel_values"].repeat(2, 1, 1, 1)
    text = torch.cat([held_out["text_embeddings"], held_out["no_text"].expand_as(held_out["text_embeddings"])])
    latents = randomness.normal(0, "drawing", [(0, index) for index in range(HELD_OUT)], (4, 16, 16))
    pipe.scheduler.set_timesteps(steps)
    for timestep in pipe.scheduler.timesteps:
        both = objective.predict(
            latents.repeat(2, 1, 1, 1), timestep.expand(2 * HELD_OUT), {"encoder_hidden_states": text}, condition
        )
        with_text, without = both.chunk(2)
        latents = pipe.scheduler.step(without + guidance * (with_text - without), timestep, latents).prev_sample
    pictures = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    return float(condition_following(pictures.clamp(0, 1), held_out["outline"]).iou.mean())


def batch_of(data: dict, keys: list) -> dict:
    """Collate samples that are in memory."""
    index = [key[1] for key in keys]
    names = ("moments", "text_embeddings", "conditioning_pixel_values")
    return {"key": keys, "text": [data["text"][each] for each in index], **{name: data[name][index] for name in names}}


@functools.cache
def samples(split: str, count: int, kind: str, side: int) -> dict:
    """Scenes as the encoders and the condition see them, in memory; a randomised condition is drawn once per scene."""
    import numpy as np
    import torch

    from diffusers_ext import randomness
    from diffusers_ext.conditions.catalogue import resolve
    from diffusers_ext.data.tensors import as_tensor
    from diffusers_ext.toy.circles import draw_condition, draw_target, scene

    scenes = [scene(index, split=split) for index in range(count)]
    conditions = [draw_condition(each, side) for each in scenes]
    if kind != "outline":
        pictures = [np.ascontiguousarray(draw_target(each, side)) for each in scenes]
        draws = [randomness.generator(0, "condition", 0, index) for index in range(count)]
        conditions = [resolve(kind)(picture, draw) for picture, draw in zip(pictures, draws)]
    return {
        "text": [each.prompt for each in scenes],
        "outline": [draw_condition(each, 64) for each in scenes],
        "conditioning_pixel_values": torch.stack([as_tensor(condition) for condition in conditions]),
        **encoded(split, count),
    }


@functools.cache
def encoded(split: str, count: int) -> dict:
    """What the embedded model's encoders make of scenes at 64 px and their prompts."""
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


# --- the bases -----------------------------------------------------------------------------------------------------


@functools.cache
def base_model(name: str, folder: Path, steps: int):
    """The pipeline of a base: the embedded model, or the same with a U-Net that is trained here on first use."""
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


# --- what came out -------------------------------------------------------------------------------------------------


def steps_to_follow(curve: list[list[float]]) -> float | None:
    """Return the step at which IoU crosses FOLLOWED, on the line between two looks; None if it never does."""
    before = tuple(curve[0][:2])
    for step, iou, _ in curve[1:]:
        if iou >= FOLLOWED:
            share = (FOLLOWED - before[1]) / (iou - before[1])
            return before[0] + share * (step - before[0])
        before = (step, iou)
    return None


def shown(steps: float | None, limit: int) -> str:
    return f">{limit}" if steps is None else f"{steps:.0f}"


def best_setting(results: dict, sweep: list[Run]) -> tuple[float, int]:
    """The learning rate and batch at which the default initialisation follows after the fewest samples, mean of seeds."""

    def samples_needed(setting: tuple[float, int]) -> float:
        runs = [each for each in sweep if (each.rate, each.batch) == setting]
        needed = [
            steps_to_follow(results[each]) or 2 * each.limit for each in runs
        ]  # never: counted as twice the limit
        return setting[1] * sum(needed) / len(needed)

    return min({(each.rate, each.batch) for each in sweep}, key=samples_needed)


def report(folder: Path, sweep: list[Run], runs: list[Run]) -> None:
    """Write summary.md and hint_init.png."""
    results = read(folder)
    text = "\n".join([*sweep_table(results, sweep), "", *step_table(results, runs)]) + "\n"
    (folder / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    plot(folder / "hint_init.png", results, runs)


def sweep_table(results: dict, sweep: list[Run]) -> Iterator[str]:
    yield f"Default initialisation, {sweep[0].kind}: steps to IoU {FOLLOWED}, one per seed."
    yield "\n| base | learning rate | batch | steps |\n|---|---|---|---|"
    for setting in dict.fromkeys((each.base, each.rate, each.batch) for each in sweep):
        runs = [each for each in sweep if (each.base, each.rate, each.batch) == setting]
        found = ", ".join(shown(steps_to_follow(results[each]), each.limit) for each in runs)
        yield f"| {setting[0]} | {setting[1]:g} | {setting[2]} | {found} |"


def step_table(results: dict, runs: list[Run]) -> Iterator[str]:
    """Median [least, most] over seeds, and the mean ratio to `data` with its interval."""
    inits = list(dict.fromkeys(each.init for each in runs))
    rivals = [init for init in inits if init != "data"] if "data" in inits else []
    yield f"Steps to IoU {FOLLOWED}: median [least, most] of the seeds; ratio: geometric mean over seeds with 95 % interval."
    head = ["base", "condition", *inits, *(f"{init} / data" for init in rivals)]
    yield f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for base, kind in dict.fromkeys((each.base, each.kind) for each in runs):
        found: dict[str, list[float | None]] = {}
        for init in inits:
            these = [each for each in runs if (each.base, each.kind, each.init) == (base, kind, init)]
            found[init], limit = [steps_to_follow(results[each]) for each in these], these[0].limit
        cells = [summary(found[init], limit) for init in inits]
        cells += [ratio(found[init], found["data"], limit) for init in rivals]
        yield f"| {base} | {kind} | {' | '.join(cells)} |"


def summary(found: list[float | None], limit: int) -> str:
    values = sorted(limit + 1 if each is None else each for each in found)
    name = lambda value: f">{limit}" if value > limit else f"{value:.0f}"  # noqa: E731
    return f"{name(values[len(values) // 2])} [{name(values[0])}, {name(values[-1])}]"


def ratio(first: list[float | None], second: list[float | None], limit: int) -> str:
    """Geometric mean of paired ratios with Student's 95 % interval; a run that never followed counts with its limit."""
    from scipy import stats

    logs = [math.log((a or limit) / (b or limit)) for a, b in zip(first, second)]
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.1f}"
    half = stats.t.ppf(0.975, len(logs) - 1) * stats.tstd(logs) / len(logs) ** 0.5
    least = "≥ " if None in first else ""
    return f"{least}{math.exp(mean):.1f} [{math.exp(mean - half):.1f}, {math.exp(mean + half):.1f}]"


def plot(path: Path, results: dict, runs: list[Run]) -> None:
    """IoU against steps: a row per base, a column per kind, a line per run, a colour per initialisation."""
    import matplotlib.pyplot as plt

    from diffusers_ext.figures import PALETTE

    bases, kinds, inits = (
        list(dict.fromkeys(getattr(each, name) for each in runs)) for name in ("base", "kind", "init")
    )
    shape = {"figsize": (3 * len(kinds), 2.6 * len(bases)), "dpi": 110, "sharex": True, "sharey": True}
    figure, axes = plt.subplots(len(bases), len(kinds), squeeze=False, **shape)
    for each in runs:
        cell = axes[bases.index(each.base), kinds.index(each.kind)]
        steps, iou, _ = zip(*results[each])
        label = each.init if each.seed == 0 and cell is axes[0, 0] else None
        cell.plot(steps, iou, ".-", color=PALETTE[inits.index(each.init)], linewidth=1, markersize=3, label=label)
    for row, base in enumerate(bases):
        for column, kind in enumerate(kinds):
            axes[row, column].axhline(FOLLOWED, color="0.7", linewidth=0.8, zorder=0)
            axes[row, column].set(xscale="log", title=f"{kind}, {base}")
            axes[row, column].spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.supxlabel("optimiser steps")
    figure.supylabel("IoU with the condition's disc")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    run(main, Options)
