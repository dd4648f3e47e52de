"""What does best-of-N gain on the embedded model, where the exact reward is known, and what does pruning save?

    python benchmarks/rerank.py --output_dir runs/rerank-benchmark      # ten minutes on an idle core

Finished rows are kept in rows.jsonl of the output folder: the same command resumes after an interruption. Parts:

best    the best of N, over disjoint groups of candidates; its gain over the mean candidate of the prompt; its difference
        from what the order statistics of other candidates, drawn singly (N = 1), predict:
        E max = Σ_i r_(i) C(i−1, N−1) / C(n, N), the unbiased estimate from n rewards.
prune   pruned best-of-16 against full best-of-16 of the same seeds: share of the evaluations spent, share of the gain kept,
        how often the winner is the same.
learnt  a reward trained from simulated rankings (training/train_reward_model.py) chooses; the exact reward, which it
        never saw, judges. Colour pairs that neither the rankings nor the model's training had.
grid    candidates of four prompts, from the highest exact reward to the lowest.
speed   wall and CPU time of best-of-N, in turns with a loop over the plain pipeline that draws and scores singly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import BenchmarkOptions, Journal, Report, run, run_script, take_turns
from spreads import Spread, paired_ratio, quartiles

from diffusers_ext.options import COUNT, option

LEARNS = [
    *("--backbone", "tiny", "--freeze_fraction", "0", "--train_batch_size", "16", "--learning_rate", "1e-3"),
    *("--adam_weight_decay", "0.01", "--validation_steps", "100", "--random_flip"),
]
NUMBERS = (1, 2, 4, 8, 16, 32)


class Pruning(NamedTuple):
    """What candidates are pruned by, when to what share of them, and how many groups of each prompt are drawn."""

    by: str
    schedule: bool | tuple
    groups: int


PRUNINGS = {
    "drafts in 1/4 and 2/5 of the steps, 16 to 6 to 2": Pruning("drafts", True, 2),
    "drafts in 1/4 of the steps, 16 to 4": Pruning("drafts", ((0.25, 0.25),), 2),
    "previews after 1/4 and 1/2 of the steps, 16 to 8 to 4": Pruning("previews", True, 1),
    "previews after 1/2 of the steps, 16 to 1": Pruning("previews", ((0.5, 0.0625),), 1),
}
PARTS = ("best", "prune", "learnt", "speed", "grid")


@dataclass
class Options(BenchmarkOptions):
    parts: list[str] = option(list(PARTS), "parts to run", PARTS)
    output_dir: str = option("runs/rerank-benchmark", "folder of finished rows, the trained reward, and pictures")
    prompts: int = option(16, "best: prompts, colour pairs the model never saw", COUNT)
    pruned_prompts: int = option(16, "prune: how many of them", COUNT)
    steps: int = option(20, "steps of the sampler", COUNT)
    rankings: int = option(1000, "learnt: ranked prompts to train on", COUNT)
    train_steps: int = option(300, "learnt: optimiser steps", COUNT)
    learnt_prompts: int = option(100, "learnt: prompts at most", COUNT)
    rounds: int = option(3, "speed: rounds of all sides", COUNT)


def main(options: Options, report: Report) -> None:
    selecting = ("parts", "prompts", "pruned_prompts", "rounds")
    journal = Journal(Path(options.output_dir) / "rows.jsonl", options, selecting)
    measures: dict[str, Callable] = dict(zip(PARTS, (best, prune, learnt, speed, grid)))
    for part in options.parts:
        measures[part](options, journal, report)


def reranker(reward):
    from diffusers import StableDiffusionPipeline

    from diffusers_ext import RewardReranker, embedded_model

    pipe = StableDiffusionPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    return RewardReranker(pipe, reward)


def prompts(options: Options) -> list[str]:
    from diffusers_ext.toy import circles

    return [circles.scene(index, split="test").prompt for index in range(options.prompts)]


def candidates(options: Options, journal: Journal, number: int = 64) -> np.ndarray:
    """Return the exact rewards of every prompt's candidates in order of their seeds, (P, number)."""
    from diffusers_ext import load_reward

    tool = reranker(load_reward("fill50k"))

    def draw(prompt: int, text: str) -> dict:
        settings = {"num_candidates": number, "keep": 1, "chunk_size": 16, "seed": seed_of(prompt)}
        drawn = tool(text, **settings, **drawing(options)).candidates[0]
        return {"rewards": [candidate.score for candidate in sorted(drawn, key=lambda candidate: candidate.number)]}

    rows = [
        journal.once({"part": "candidates", "prompt": prompt}, lambda prompt=prompt, text=text: draw(prompt, text))
        for prompt, text in enumerate(prompts(options))
    ]
    return np.array([row["rewards"] for row in rows])


def seed_of(prompt: int) -> int:
    return 1000 * prompt


def drawing(options: Options) -> dict:
    return {"num_inference_steps": options.steps, "guidance_scale": 2.0}


# Best-of-N and its order statistics


def best(options: Options, journal: Journal, report: Report) -> None:
    from diffusers_ext.figures import plot_curves

    rewards = candidates(options, journal)
    measured, others = rewards[:, :32], rewards[:, 32:]  # the prediction is made from candidates of its own
    highest = np.array([measured.reshape(len(measured), -1, n).max(2).mean(1) for n in NUMBERS]).T  # (P, len(NUMBERS))
    expected = np.array([[expected_best(row, n) for n in NUMBERS] for row in others])
    mean = rewards.mean(1, keepdims=True)  # gains are over the mean candidate of the prompt
    columns = {
        "exact reward of the best": highest.mean(0).tolist(),
        "gain": bootstrap(highest - mean),
        "less order statistics": bootstrap(highest - expected),
    }
    rows = [{"N": n, **{name: column[index] for name, column in columns.items()}} for index, n in enumerate(NUMBERS)]
    deviation = rewards.std(axis=1, ddof=1).mean()
    report.table(f"best of N: {len(rewards)} prompts, deviation among a prompt's candidates {deviation:.3f}", rows)
    curves = {
        "best of N": (NUMBERS, (highest - mean).mean(0)),
        "order statistics of other candidates": (NUMBERS, (expected - mean).mean(0)),
    }
    plot_curves(Path(options.output_dir) / "rerank.png", curves, "N", "gain in exact reward")


def expected_best(rewards: np.ndarray, number: int) -> float:
    """Return E max of `number` draws without replacement from the rewards, (n,)."""
    ordered, n = np.sort(rewards), len(rewards)
    weights = [math.comb(i, number - 1) / math.comb(n, number) for i in range(n)]
    return float(ordered @ weights)


def bootstrap(values: np.ndarray, draws: int = 2000) -> list[Spread]:
    """Return the means of the columns of (P, K), with 95 % bootstrap intervals over the prompts."""
    draw = np.random.default_rng(0)
    means = [values[draw.integers(len(values), size=len(values))].mean(0) for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5], axis=0).tolist()
    return [Spread(*bounds, len(values), "bootstrap") for bounds in zip(values.mean(0).tolist(), low, high)]


# Pictures


def grid(options: Options, journal: Journal, report: Report) -> None:
    """Draw sixteen candidates of four prompts, from the highest exact reward to the lowest, every third shown."""
    from diffusers_ext import load_reward
    from diffusers_ext.figures import labelled_grid

    tool, images, labels = reranker(load_reward("fill50k")), [], []
    for prompt, text in list(enumerate(prompts(options)))[:4]:
        settings = {"num_candidates": 16, "keep": 16, "chunk_size": 16, "seed": seed_of(prompt)}
        drawn = tool(text, **settings, **drawing(options))
        images.append(drawn.images[::3])
        labels.append(f"{text}: " + ", ".join(f"{score:.1f}" for score in drawn.scores[::3]))
    columns = [f"rank {rank}" for rank in range(1, 17, 3)]
    labelled_grid(images, columns, labels).save(Path(options.output_dir) / "rerank-grid.png")


# Pruning


def prune(options: Options, journal: Journal, report: Report) -> None:
    from diffusers_ext import load_reward

    rewards, tool = candidates(options, journal)[: options.pruned_prompts], reranker(load_reward("fill50k"))
    rows = []
    for name, pruning in PRUNINGS.items():

        def draw(prompt: int, first: int, pruning: Pruning = pruning) -> dict:
            settings = {"num_candidates": 16, "keep": 1, "chunk_size": 16, "seed": seed_of(prompt) + first}
            settings |= {"prune": pruning.schedule, "prune_by": pruning.by}
            drawn = tool(prompts(options)[prompt], **settings, **drawing(options))
            return {"reward": drawn.scores[0], "order": drawn.order[0], "evaluations": drawn.evaluations}

        firsts = [(prompt, first) for prompt in range(len(rewards)) for first in (0, 16)[: pruning.groups]]
        drawn = [
            journal.once(
                {"part": "prune", "pruning": name, "prompt": prompt, "first": first},
                lambda prompt=prompt, first=first: draw(prompt, first),
            )
            for prompt, first in firsts
        ]
        full = np.array([rewards[prompt, first : first + 16] for prompt, first in firsts])  # (groups, 16)
        rows.append({"pruning": name, **kept_by(drawn, full, pruning.groups, 2 * 16 * options.steps)})
    report.table("pruned best of 16", rows, {"same winner": ".2f"})


def kept_by(drawn: list[dict], full: np.ndarray, groups: int, whole: int) -> dict:
    """Return what pruned groups spent and kept of the full ones; whole: evaluations of a full group, guided."""
    part, gain = np.array([row["reward"] for row in drawn]) - full.mean(1), full.max(1) - full.mean(1)
    return {
        "evaluations": float(np.mean([row["evaluations"] for row in drawn]) / whole),
        "gain kept": shares(*(gains.reshape(-1, groups).sum(1) for gains in (part, gain))),
        "same winner": float(np.mean([row["order"] == group.argmax() for row, group in zip(drawn, full)])),
    }


def shares(part: np.ndarray, whole: np.ndarray, draws: int = 2000) -> Spread:
    """Return Σ part / Σ whole of (P,) with its 95 % bootstrap interval over prompts."""
    draw = np.random.default_rng(0)
    picks = [draw.integers(len(part), size=len(part)) for _ in range(draws)]
    low, high = np.percentile([part[pick].sum() / whole[pick].sum() for pick in picks], [2.5, 97.5]).tolist()
    return Spread(float(part.sum() / whole.sum()), low, high, len(part), "bootstrap")


# A learnt reward


def learnt(options: Options, journal: Journal, report: Report) -> None:
    from diffusers_ext import load_reward
    from diffusers_ext.preferences.simulated import basic_pairs

    exact, tool = load_reward("fill50k"), reranker(load_reward(train_reward(options)))
    texts = [f"{circle} circle with {background} background" for circle, background in basic_pairs("test")]
    rows = []
    for guidance in (1.0, 2.0):

        def draw(number: int, text: str, guidance: float = guidance) -> dict:
            settings = {"num_candidates": 16, "keep": 16, "chunk_size": 16, "seed": 500_000 + seed_of(number)}
            images = tool(text, **settings, **drawing(options) | {"guidance_scale": guidance}).images
            return {"exact": exact.score(text, images).tolist()}  # in the order of the learnt reward

        drawn = [
            journal.once(
                {"part": "learnt", "guidance": guidance, "prompt": number},
                lambda number=number, text=text: draw(number, text),
            )
            for number, text in enumerate(texts[: options.learnt_prompts])
        ]
        rewards = np.array([row["exact"] for row in drawn])
        row = {"guidance": guidance, "deviation of 16": rewards.std(1, ddof=1).mean(), "all 16": rewards.mean()}
        row |= {"the learnt reward's best": rewards[:, 0].mean(), "the exact reward's best": rewards.max(1).mean()}
        rows.append({**row, "gain": bootstrap((rewards[:, 0] - rewards.mean(1))[:, None])[0]})
    report.table(f"a learnt reward chooses: {len(rewards)} prompts of colour pairs in no ranking", rows, ".2f")


def train_reward(options: Options) -> Path:
    """Train a reward on simulated rankings, once; return its folder."""
    from diffusers_ext.preferences.simulated import Options as Simulated
    from diffusers_ext.preferences.simulated import simulate

    folder = Path(options.output_dir)
    if not (folder / "reward" / "config.json").exists():
        simulated = Simulated(output_dir=str(folder / "rankings"), size=32, basic_colours=True, count=options.rankings)
        words = ["--rankings", simulate(simulated), "--output_dir", folder / "reward"]
        words += ["--max_train_steps", options.train_steps, "--lr_warmup_steps", min(40, options.train_steps // 7)]
        run_script("train_reward_model", *LEARNS, *words)
    return folder / "reward"


# Time


def speed(options: Options, journal: Journal, report: Report) -> None:
    """Time the loop that people write, and the reranker, at 8 candidates."""
    import torch

    from diffusers_ext import load_reward

    reward, text = load_reward("fill50k"), prompts(options)[0]
    tool = reranker(reward)

    def loop() -> list[float]:
        scores = []
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            image = tool.pipeline(text, generator=generator, **drawing(options)).images[0]
            scores.append(float(reward.score(text, [image])[0]))
        return scores

    def best_of(chunk_size: int) -> Callable:
        return lambda: tool(text, num_candidates=8, keep=1, chunk_size=chunk_size, seed=0, **drawing(options))

    sides = {"loop": loop, "chunks of 4": best_of(4), "chunks of 8": best_of(8)}
    turns = take_turns(sides, options.rounds, warm_up=1)
    rows = []
    for name, timings in turns.items():
        row = {"8 candidates": name}
        for unit, index in (("CPU s", 0), ("wall s", 1)):
            values, loops = [turn[index] for turn in timings], [turn[index] for turn in turns["loop"]]
            row |= {unit: quartiles(values), f"{unit}, of the loop": paired_ratio(values, loops)}
        rows.append(row)
    report.table("speed", rows, ".2f")


if __name__ == "__main__":
    run(main, Options)
