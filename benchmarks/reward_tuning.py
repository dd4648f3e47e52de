"""Reward tuning on the embedded model: what does each method gain, what does it pay, what does a fooled reward look like?

    python benchmarks/reward_tuning.py --parts tunes --seeds 0 --methods refl    # a CPU minute; all: some 25

tunes: training/train_reward_tuning.py by every method with the soft colour reward; dpo learns from the best and the worst of
eight pictures of the base by the exact reward, for each of 200 prompts. Measured on colour pairs that occur in no
training prompt. Columns: gain of the exact reward, which is never optimised, over the base; the exact reward; how much of
a circle the pictures show; diversity; distance from the base. The gain at several strengths of the adapters is plotted as
trade_off.png.

hackable: the reward is brightness. It rises, and the exact colours, held out, fall; early stopping ends the run.

Finished rows are kept in rows.jsonl of the output folder and are not run again. What a step costs: reward_tuning_cost.py.
ControlNets: control_reward.py.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from harness import BenchmarkOptions, Journal, Report, run, run_script
from spreads import deviation

from diffusers_ext.options import COUNT, POSITIVE, SEED, option

METHODS = ("refl", "draft", "draft_lv", "alignprop", "dpo")
OWN = {  # options of single methods
    "draft": ["--grad_steps", "2", "--gradient_checkpointing"],
    "alignprop": ["--grad_steps", "5", "--gradient_checkpointing"],
    "dpo": [  # its updates draw no pictures
        *("--dpo_beta", "500", "--train_batch_size", "16", "--learning_rate", "3e-4"),
        *("--max_train_steps", "500", "--validation_steps", "500"),
    ],
}
MEASURES = {"exact": "exact reward", "circle": "circle", "diversity": "diversity", "distance": "distance from the base"}
COMMON = [
    *("--resolution", "64", "--num_inference_steps", "10", "--train_batch_size", "4", "--num_validation_images", "2"),
    *("--held_out_reward", "fill50k", "--checkpointing_steps", "1000"),
]


@dataclass
class Options(BenchmarkOptions):
    parts: list[str] = option(["tunes", "hackable"], "parts to run")
    output_dir: str = option("runs/reward-tuning-benchmark", "folder of runs, finished rows and plots")
    methods: list[str] = option(list(METHODS), "tunes: methods")
    seeds: list[int] = option([0, 1, 2], "tunes: seeds", SEED)
    steps: int = option(40, "tunes: optimiser steps of four prompts; dpo takes 500 of 16 pairs", COUNT)
    learning_rate: float = option(1e-3, "tunes: learning rate; dpo takes 3e-4", POSITIVE)
    prompts: int = option(16, "prompts to measure on, with two pictures each", COUNT)
    hackable_steps: int = option(40, "hackable: optimiser steps at most", COUNT)


def main(options: Options, report: Report) -> None:
    folder = Path(options.output_dir)
    journal = Journal(folder / "rows.jsonl", options, ("parts", "methods", "seeds"))
    write_prompts(folder, options.prompts)
    if "tunes" in options.parts:
        rows = [
            journal.once(
                {"part": "tunes", "method": method, "seed": seed},
                lambda method=method, seed=seed: tunes(options, folder, method, seed),
            )
            for seed in options.seeds
            for method in options.methods
        ]
        plot(folder, rows)
        table(rows, report)
    if "hackable" in options.parts:
        row = journal.once({"part": "hackable"}, lambda: hackable(options, folder))
        steps = zip(row["steps"], row["reward"], row["exact"])
        looks = [{"step": step, "reward": reward, "exact": exact} for step, reward, exact in steps]
        report.table(f"hackable: {'; '.join(row['warnings'])}", looks)


def write_prompts(folder: Path, count: int) -> None:
    """Prompts to learn from, and prompts of colour pairs that occur in none of them."""
    from diffusers_ext.toy.circles import scene

    for name, split, number in (("train", "train", 400), ("held-out", "test", count)):
        texts = [scene(index, split=split).prompt for index in range(number)]
        (folder / f"{name}.txt").write_text("\n".join(dict.fromkeys(texts)) + "\n", encoding="utf-8")


# What each method gains, and what it pays.


def tunes(options: Options, folder: Path, method: str, seed: int) -> dict:
    """Tune, and read what the run measured at its adapters' strengths."""
    output = folder / f"{method}-{seed}"
    data = ["--rankings", ranked_by_colour(folder)] if method == "dpo" else ["--prompts", folder / "train.txt"]
    run_script(
        "train_reward_tuning",
        *COMMON,
        *data,
        *("--method", method, "--seed", seed, "--reward", "fill50k:soft", "--output_dir", output),
        *("--validation_prompts", folder / "held-out.txt", "--learning_rate", options.learning_rate),
        *("--max_train_steps", options.steps, "--validation_steps", options.steps),
        *("--resume_from_checkpoint", "latest"),
        *OWN.get(method, []),
    )
    strengths = json.loads((output / "strength.json").read_text(encoding="utf-8"))
    by_strength = {row["strength"]: row for row in strengths}
    base, tuned = by_strength[0.0], by_strength[1.0]
    return {
        "exact_base": base["held_out_reward"],
        "exact": tuned["held_out_reward"],
        "soft_base": base["reward"],
        "soft": tuned["reward"],
        "distance": tuned["distance_from_base"],
        "diversity_base": base["diversity"],
        "diversity": tuned["diversity"],
        **circles(folder, output, options.prompts),
        "strengths": strengths,
    }


def circles(folder: Path, output: Path, count: int) -> dict:
    """How much of a circle the base's and the tuned model's pictures show, drawn by the pipeline from the saved LoRA."""
    from diffusers import DiffusionPipeline

    from diffusers_ext import embedded_model
    from diffusers_ext.diffusion.draw import draw
    from diffusers_ext.toy.measures import circle_likeness

    prompts = (folder / "held-out.txt").read_text(encoding="utf-8").splitlines()[:count]
    pipe = DiffusionPipeline.from_pretrained(embedded_model())
    drawn = {}
    for name in ("circle_base", "circle"):
        if name == "circle":
            pipe.load_lora_weights(output)
        pictures = draw(pipe, prompts, num_inference_steps=10, guidance_scale=1.0)
        drawn[name] = float(circle_likeness(pictures).mean())
    return drawn


def ranked_by_colour(folder: Path, count: int = 200, candidates: int = 8) -> Path:
    """Rank the best and the worst of the base's candidates by the exact colour reward, for `count` prompts: for dpo."""
    from diffusers import DiffusionPipeline

    from diffusers_ext import embedded_model, load_reward
    from diffusers_ext.diffusion.draw import draw
    from diffusers_ext.preferences.rankings import RankedPrompt, Ranking, write

    path = folder / "ranked" / "rankings.jsonl"
    if path.exists():
        return path
    prompts = (folder / "train.txt").read_text(encoding="utf-8").splitlines()[:count]
    pipe, reward, ranked = DiffusionPipeline.from_pretrained(embedded_model()), load_reward("fill50k"), []
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(prompts):
        seeds = [1000 + number * candidates + index for index in range(candidates)]
        pictures = draw(pipe, [prompt] * candidates, seeds, num_inference_steps=10, guidance_scale=1.0)
        scores = reward.score(prompt, pictures)
        files = []
        for name, index in (("best", int(scores.argmax())), ("worst", int(scores.argmin()))):
            files.append(path.parent / f"{number}-{name}.png")
            pictures[index].save(files[-1])
        ranked.append(RankedPrompt(str(number), prompt, tuple(files), (Ranking("exact", (1, 2)),)))
    return write(path, ranked)


def plot(folder: Path, rows: list[dict]) -> None:
    """Plot the exact reward's gain over the base against the distance from it: a curve for each method, mean over seeds."""
    from diffusers_ext.figures import plot_curves

    curves = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        runs = [row["strengths"] for row in rows if row["method"] == method]
        curves[method] = tuple(
            [statistics.fmean(run[index][name] - run[0][name] for run in runs) for index in range(len(runs[0]))]
            for name in ("distance_from_base", "held_out_reward")
        )
    plot_curves(folder / "trade_off.png", curves, "distance from the base", "gain of the exact reward")


def table(rows: list[dict], report: Report) -> None:
    """Report what the tuned models measure, over seeds, a row for each method."""
    bases = {row["seed"]: {name: row.get(f"{name}_base", 0.0) for name in MEASURES} for row in rows}
    groups = {"base": list(bases.values())}
    groups |= {method: [row for row in rows if row["method"] == method] for method in METHODS}
    lines = []
    for name, group in groups.items():
        if group:
            gains = None if name == "base" else deviation([row["exact"] - row["exact_base"] for row in group])
            measures = {label: deviation([row[measure] for row in group]) for measure, label in MEASURES.items()}
            lines.append({"method": name, "seeds": len(group), "gain": gains, **measures})
    report.table("tunes: held-out colour pairs", lines)


# A reward that can be fooled.


def brightness(prompts: list[str], images: list):
    """Return ten times the mean brightness: it says nothing about the prompt, and rises when the prompt is forgotten."""
    import torch

    return torch.stack([10 * image.mean() for image in images])


def hackable(options: Options, folder: Path) -> dict:
    """Tune for brightness with the exact colours held out; see what the guard rails say."""
    from diffusers_ext.engine.run_folder import read_metrics
    from diffusers_ext.tuning.card import suspicions

    output = folder / "hackable"
    run_script(
        "train_reward_tuning",
        *COMMON,
        *("--prompts", folder / "train.txt", "--validation_prompts", folder / "held-out.txt", "--output_dir", output),
        *("--reward", "reward_tuning:brightness", "--no-use_margin", "--method", "draft", "--no-strength_sweep"),
        *(
            "--learning_rate",
            options.learning_rate,
            "--max_train_steps",
            options.hackable_steps,
            "--validation_steps",
            5,
        ),
        *("--early_stopping_patience", 2, "--resume_from_checkpoint", "latest"),
    )
    rows = [row for row in read_metrics(output) if "held_out_reward" in row]
    return {
        "steps": [0, *(row["step"] for row in rows)],
        "reward": [rows[0]["reward_base"], *(row["reward"] for row in rows)],
        "exact": [rows[0]["held_out_reward_base"], *(row["held_out_reward"] for row in rows)],
        "warnings": suspicions(rows),
    }


if __name__ == "__main__":
    run(main, Options)
