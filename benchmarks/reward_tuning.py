"""Reward tuning on the embedded model: what each method gains, what it pays, what a fooled reward looks like.

    python benchmarks/reward_tuning.py --parts tunes --seeds 0 --methods refl    # a CPU minute; all: some 25

tunes: training/train_reward_tuning.py by every method with the soft colour reward (dpo: with the best and the worst of eight
of the base's own pictures by the exact one, for each of 200 prompts). Measured on colour pairs that occur in no training prompt: the exact reward, which is never
optimised; how much of a circle the pictures show; the distance from the base; all of it at several strengths of the
adapters, plotted as trade_off.png. Prints a table of means and standard deviations over the seeds that have been run.

hackable: the reward is brightness. It rises, and the exact colours, held out, fall; early stopping ends the run.

Rows go to results.jsonl in the output folder; what is there already is not run again. What a step costs:
reward_tuning_cost.py. ControlNets: control_reward.py.
"""

import json
import runpy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, POSITIVE, SEED, option, parse, run

ROOT = Path(__file__).parents[1]
METHODS = ("refl", "draft", "draft_lv", "alignprop", "dpo")
EACH = {
    "draft": ["--grad_steps", "2", "--gradient_checkpointing"],
    "alignprop": ["--grad_steps", "5", "--gradient_checkpointing"],
    "dpo": [  # its updates draw no pictures
        *("--dpo_beta", "500", "--train_batch_size", "16", "--learning_rate", "3e-4"),
        *("--max_train_steps", "500", "--validation_steps", "500"),
    ],
}
COMMON = [
    *("--resolution", "64", "--num_inference_steps", "10", "--train_batch_size", "4", "--num_validation_images", "2"),
    *("--held_out_reward", "fill50k", "--checkpointing_steps", "1000"),
]


@dataclass
class Options:
    parts: list[str] = option(["tunes", "hackable"], "what to measure")
    output_dir: str = option("runs/reward-tuning-benchmark", "runs, rows and plots")
    methods: list[str] = option(list(METHODS), "tunes: which methods")
    seeds: list[int] = option([0, 1, 2], "tunes: seeds", SEED)
    steps: int = option(40, "tunes: optimiser steps of four prompts; dpo takes 500 of 16 pairs", COUNT)
    learning_rate: float = option(1e-3, "tunes: of all methods; dpo takes 3e-4", POSITIVE)
    prompts: int = option(16, "prompts to measure on, with two pictures each", COUNT)
    hackable_steps: int = option(40, "hackable: optimiser steps at most", COUNT)


def main(options: Options) -> None:
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder, options.prompts)
    if "tunes" in options.parts:
        for seed in options.seeds:
            for method in options.methods:
                once(folder, {"part": "tunes", "method": method, "seed": seed}, lambda row: tunes(options, folder, row))
        plot(folder)
        print(table(folder))
    if "hackable" in options.parts:
        once(folder, {"part": "hackable"}, lambda row: hackable(options, folder))


def once(folder: Path, about: dict, measure) -> None:
    """Measure a row that is not in results.jsonl yet, and append it."""
    rows = read_rows(folder)
    if any(about.items() <= row.items() for row in rows):
        return
    began = time.process_time()
    row = {**about, **measure(about), "cpu_seconds": round(time.process_time() - began)}
    print(json.dumps(row), flush=True)
    with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(folder: Path) -> list[dict]:
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_prompts(folder: Path, count: int) -> None:
    """Prompts to learn from, and prompts of colour pairs that occur in none of them."""
    from diffusers_ext.toy.circles import scene

    for name, split, number in (("train", "train", 400), ("held-out", "test", count)):
        texts = [scene(index, split=split).prompt for index in range(number)]
        (folder / f"{name}.txt").write_text("\n".join(dict.fromkeys(texts)) + "\n", encoding="utf-8")


def script(name: str, *arguments) -> None:
    """Run a training script's main in this process."""
    made = runpy.run_path(str(ROOT / "training" / f"{name}.py"))
    made["main"](parse(made["Options"], list(map(str, arguments))))


# What each method gains, and what it pays.


def tunes(options: Options, folder: Path, row: dict) -> dict:
    """Tune, and read what the run measured at its adapters' strengths."""
    method, seed = row["method"], row["seed"]
    output = folder / f"{method}-{seed}"
    data = ["--rankings", ranked_by_colour(folder)] if method == "dpo" else ["--prompts", folder / "train.txt"]
    script(
        "train_reward_tuning",
        *COMMON,
        *data,
        *("--method", method, "--seed", seed, "--reward", "fill50k:soft", "--output_dir", output),
        *("--validation_prompts", folder / "held-out.txt", "--learning_rate", options.learning_rate),
        *("--max_train_steps", options.steps, "--validation_steps", options.steps),
        *("--resume_from_checkpoint", "latest"),
        *EACH.get(method, []),
    )
    strengths = json.loads((output / "strength.json").read_text(encoding="utf-8"))
    base, tuned = (next(each for each in strengths if each["strength"] == at) for at in (0.0, 1.0))
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


def ranked_by_colour(folder: Path, count: int = 200, each: int = 8) -> Path:
    """The best and the worst of `each` pictures of the base by the exact colour reward, for `count` prompts: for dpo."""
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
        seeds = [1000 + number * each + at for at in range(each)]
        pictures = draw(pipe, [prompt] * each, seeds, num_inference_steps=10, guidance_scale=1.0)
        scores = reward.score(prompt, pictures)
        files = []
        for name, at in (("best", int(scores.argmax())), ("worst", int(scores.argmin()))):
            files.append(path.parent / f"{number}-{name}.png")
            pictures[at].save(files[-1])
        ranked.append(RankedPrompt(str(number), prompt, tuple(files), (Ranking("exact", (1, 2)),)))
    return write(path, ranked)


def plot(folder: Path) -> None:
    """Plot the exact reward's gain over the base against the distance from it: a curve for each method, mean over seeds."""
    from diffusers_ext.figures import plot_curves

    curves = {}
    for method in METHODS:
        runs = [row["strengths"] for row in read_rows(folder) if row["part"] == "tunes" and row["method"] == method]
        if runs:
            means = [
                [
                    statistics.mean(run[at][name] - run[0][name] for run in runs)
                    for name in ("distance_from_base", "held_out_reward")
                ]
                for at in range(len(runs[0]))
            ]
            curves[method] = tuple(zip(*means))
    if curves:
        plot_curves(folder / "trade_off.png", curves, "distance from the base", "gain of the exact reward")


def table(folder: Path) -> str:
    """Mean and, of several seeds, standard deviation of what the tuned models measure, a row for each method."""
    measures = {
        "exact": "exact reward",
        "circle": "circle",
        "diversity": "diversity",
        "distance": "distance from the base",
    }
    lines = [f"| method (seeds) | gain | {' | '.join(measures.values())} |", f"|{'---|' * (len(measures) + 2)}"]
    rows = [row for row in read_rows(folder) if row["part"] == "tunes"]
    bases = {row["seed"]: {name: row.get(f"{name}_base", 0.0) for name in measures} for row in rows}
    groups = {"base": list(bases.values())}
    groups |= {method: [row for row in rows if row["method"] == method] for method in METHODS}
    for name, group in groups.items():
        if group:
            gains = [row["exact"] - row["exact_base"] for row in group if name != "base"]
            cells = [spread(gains), *(spread([row[measure] for row in group]) for measure in measures)]
            lines.append(f"| {name} ({len(group)}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


# A reward that can be fooled.


def brightness(prompts: list[str], images: list):
    """Ten times the mean brightness: says nothing about the prompt, and can be had by forgetting it."""
    import torch

    return torch.stack([10 * image.mean() for image in images])


def hackable(options: Options, folder: Path) -> dict:
    """Tune for brightness with the exact colours held out; see what the guard rails say."""
    from diffusers_ext.engine.run_folder import read_metrics
    from diffusers_ext.tuning.card import suspicions

    output = folder / "hackable"
    script(
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
        "stopped_at": rows[-1]["step"],
        "of_steps": options.hackable_steps,
        "reward": [rows[0]["reward_base"], *(row["reward"] for row in rows)],
        "exact": [rows[0]["held_out_reward_base"], *(row["held_out_reward"] for row in rows)],
        "said": suspicions(rows),
    }


if __name__ == "__main__":
    run(main, Options)
