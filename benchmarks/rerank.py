"""What best-of-N gains on the embedded model, where the exact reward is known, and what pruning saves.

    python benchmarks/rerank.py --output_dir runs/rerank-benchmark

Every part is a function of the seeds and appends a row per prompt to rows.jsonl; run again, it goes on where it stopped.
Some ten minutes on a quiet core.

best    the best of N, over disjoint groups of candidates, against what the order statistics of other candidates, drawn
        one by one in mind (N = 1), say: E max = Σ_i r_(i) C(i−1, N−1) / C(n, N), the unbiased estimate from n rewards.
prune   pruned best-of-16 against full best-of-16 of the same seeds: share of the gain kept, share of the evaluations spent.
learnt  a reward trained from simulated rankings (training/train_reward_model.py) chooses; the exact reward, which it
        never saw, judges. Colour pairs that neither the rankings nor the model's training had.
grid    candidates of four prompts, from the highest exact reward to the lowest.
speed   wall and CPU time of best-of-N against a loop over the plain pipeline that draws and scores one by one, in turns.
"""

import json
import math
import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusers_ext.options import COUNT, option, parse, run

SCRIPT = Path(__file__).parents[1] / "training" / "train_reward_model.py"
LEARNS = [
    *("--backbone", "tiny", "--freeze_fraction", "0", "--train_batch_size", "16", "--learning_rate", "1e-3"),
    *("--lr_warmup_steps", "40", "--adam_weight_decay", "0.01", "--validation_steps", "100", "--random_flip"),
]
NUMBERS = (1, 2, 4, 8, 16, 32)
PRUNINGS = {  # name: (by, schedule, groups of each prompt)
    "drafts in 1/4 and 2/5 of the steps, 16 to 6 to 2": ("drafts", True, 2),
    "drafts in 1/4 of the steps, 16 to 4": ("drafts", ((0.25, 0.25),), 2),
    "previews after 1/4 and 1/2 of the steps, 16 to 8 to 4": ("previews", True, 1),
    "previews after 1/2 of the steps, 16 to 1": ("previews", ((0.5, 0.0625),), 1),
}


@dataclass
class Options:
    parts: list[str] = option(["best", "prune", "learnt", "speed", "grid"], "what to measure")
    output_dir: str = option(
        "runs/rerank-benchmark", "rows.jsonl, the trained reward; an unfinished one is gone on with"
    )
    prompts: int = option(16, "best: prompts, colour pairs the model never saw", COUNT)
    pruned_prompts: int = option(16, "prune: the first so many of them", COUNT)
    steps: int = option(20, "of the sampler", COUNT)
    rankings: int = option(1000, "learnt: ranked prompts to train on", COUNT)
    train_steps: int = option(300, "learnt: optimiser steps", COUNT)
    rounds: int = option(3, "speed: turns of each side", COUNT)
    image_dir: str = option("docs/images", "where the plot and the grid are written")


def main(options: Options) -> None:
    import torch

    torch.set_num_threads(1)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows(folder / "rows.jsonl")
    parts: dict[str, Callable] = {"best": best, "prune": prune, "learnt": learnt, "speed": speed, "grid": grid}
    for part in options.parts:
        parts[part](options, folder, rows)


class Rows:
    """rows.jsonl: what was measured, by a key."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.known = {row["key"]: row for row in map(json.loads, lines)}

    def __call__(self, key: str, measure: Callable[[], dict]) -> dict:
        """Return the row of a key, measured now if it never was."""
        if key not in self.known:
            self.known[key] = {"key": key, **measure()}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.known[key]) + "\n")
            print(key, flush=True)
        return self.known[key]


def reranker(reward):
    from diffusers import StableDiffusionPipeline

    from diffusers_ext import RewardReranker, embedded_model

    pipe = StableDiffusionPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    return RewardReranker(pipe, reward)


def prompts(options: Options) -> list[str]:
    from diffusers_ext.toy import circles as fill50k

    return [fill50k.scene(index, split="test").prompt for index in range(options.prompts)]


def candidates(options: Options, rows: Rows, number: int = 64) -> np.ndarray:
    """Return the exact rewards of every prompt's candidates in order of their seeds, (P, number)."""
    from diffusers_ext import load_reward

    tool = reranker(load_reward("fill50k"))

    def draw(prompt: int, text: str) -> dict:
        settings = {"num_candidates": number, "keep": 1, "chunk_size": 16, "seed": seed_of(prompt)}
        found = tool(text, **settings, **drawing(options)).candidates[0]
        return {"rewards": [each.score for each in sorted(found, key=lambda each: each.number)]}

    name = f"candidates-{options.steps}"
    each = [rows(f"{name}-{at}", lambda at=at, text=text: draw(at, text)) for at, text in enumerate(prompts(options))]
    return np.array([row["rewards"] for row in each])


def seed_of(prompt: int) -> int:
    return 1000 * prompt


def drawing(options: Options) -> dict:
    return {"num_inference_steps": options.steps, "guidance_scale": 2.0}


# ------------------------------------------------------------------ best-of-N and its order statistics


def best(options: Options, folder: Path, rows: Rows) -> None:
    from diffusers_ext.figures import plot_curves

    rewards = candidates(options, rows)
    measured, alone = rewards[:, :32], rewards[:, 32:]  # the prediction is made from candidates of its own
    found = np.array([measured.reshape(len(measured), -1, n).max(2).mean(1) for n in NUMBERS]).T  # (P, len(NUMBERS))
    expected = np.array([[expected_best(each, n) for n in NUMBERS] for each in alone])
    mean = rewards.mean(1, keepdims=True)  # gains are over the mean candidate of the prompt
    gains, gaps = interval(found - mean), interval(found - expected)
    print(
        "\n| N | exact reward of the best | gain | 95 % | difference from the order statistics | 95 % |\n|---|---|---|---|---|---|"
    )
    for at, n in enumerate(NUMBERS):
        print(
            f"| {n} | {found[:, at].mean():.3f} "
            f"| {(found - mean)[:, at].mean():.3f} | {gains[0, at]:.3f} to {gains[1, at]:.3f} "
            f"| {(found - expected)[:, at].mean():+.3f} | {gaps[0, at]:+.3f} to {gaps[1, at]:+.3f} |"
        )
    spread = rewards.std(axis=1, ddof=1).mean()
    print(f"\n{len(rewards)} prompts, deviation among the candidates of one {spread:.3f}")
    curves = {
        "best of N": (NUMBERS, (found - mean).mean(0)),
        "order statistics of other candidates": (NUMBERS, (expected - mean).mean(0)),
    }
    plot_curves(Path(options.image_dir) / "rerank.png", curves, "N", "gain in exact reward")


def expected_best(rewards: np.ndarray, number: int) -> float:
    """E max of `number` draws without replacement from the rewards, (n,)."""
    ordered, n = np.sort(rewards), len(rewards)
    weights = [math.comb(i, number - 1) / math.comb(n, number) for i in range(n)]
    return float(ordered @ weights)


def interval(values: np.ndarray, draws: int = 2000) -> np.ndarray:
    """95 % bootstrap intervals over prompts of the column means of (P, K): (2, K)."""
    draw = np.random.default_rng(0)
    means = [values[draw.integers(len(values), size=len(values))].mean(0) for _ in range(draws)]
    return np.percentile(means, [2.5, 97.5], axis=0)


# ------------------------------------------------------------------ pictures


def grid(options: Options, folder: Path, rows: Rows) -> None:
    """Sixteen candidates of three prompts, from the highest exact reward to the lowest, every third shown."""
    from diffusers_ext import load_reward
    from diffusers_ext.figures import labelled_grid

    tool, images, labels = reranker(load_reward("fill50k")), [], []
    for prompt, text in list(enumerate(prompts(options)))[:4]:
        given = {"num_candidates": 16, "keep": 16, "chunk_size": 16, "seed": seed_of(prompt)}
        found = tool(text, **given, **drawing(options))
        images.append(found.images[::3])
        labels.append(f"{text}: " + ", ".join(f"{score:.1f}" for score in found.scores[::3]))
    columns = [f"rank {rank}" for rank in range(1, 17, 3)]
    labelled_grid(images, columns, labels).save(Path(options.image_dir) / "rerank-grid.png")


# ------------------------------------------------------------------ pruning


def prune(options: Options, folder: Path, rows: Rows) -> None:
    from diffusers_ext import load_reward

    rewards = candidates(options, rows)[: options.pruned_prompts]
    tool, whole = reranker(load_reward("fill50k")), 2 * 16 * options.steps  # guidance sends each through twice
    print("\n| pruned best of 16 | evaluations | gain kept | 95 % | same winner |\n|---|---|---|---|---|")
    for name, (by, schedule, groups) in PRUNINGS.items():

        def draw(prompt: int, first: int, by=by, schedule=schedule) -> dict:
            settings = {"num_candidates": 16, "keep": 1, "chunk_size": 16, "seed": seed_of(prompt) + first}
            found = tool(prompts(options)[prompt], prune=schedule, prune_by=by, **settings, **drawing(options))
            return {"reward": found.scores[0], "order": found.order[0], "evaluations": found.evaluations}

        firsts = [(prompt, first) for prompt in range(len(rewards)) for first in (0, 16)[:groups]]
        found = [
            rows(f"{name}-{options.steps}-{prompt}-{first}", lambda prompt=prompt, first=first: draw(prompt, first))
            for prompt, first in firsts
        ]
        full = np.array([rewards[prompt, first : first + 16] for prompt, first in firsts])  # (groups, 16)
        gains = np.array([row["reward"] for row in found]) - full.mean(1), full.max(1) - full.mean(1)
        kept, (low, high) = shares(*(gain.reshape(len(rewards), groups).sum(1) for gain in gains))
        spent = np.mean([row["evaluations"] for row in found]) / whole
        same = np.mean([row["order"] == each.argmax() for row, each in zip(found, full)])
        print(f"| {name} | {spent:.3f} | {kept:.3f} | {low:.3f} to {high:.3f} | {same:.2f} |")


def shares(part: np.ndarray, whole: np.ndarray, draws: int = 2000) -> tuple[float, np.ndarray]:
    """Σ part / Σ whole of (P,) with its 95 % bootstrap interval over prompts."""
    draw = np.random.default_rng(0)
    picks = [draw.integers(len(part), size=len(part)) for _ in range(draws)]
    return part.sum() / whole.sum(), np.percentile(
        [part[pick].sum() / whole[pick].sum() for pick in picks], [2.5, 97.5]
    )


# ------------------------------------------------------------------ a reward that was learnt


def learnt(options: Options, folder: Path, rows: Rows) -> None:
    from diffusers_ext import load_reward
    from diffusers_ext.preferences.simulated import Options as Simulated
    from diffusers_ext.preferences.simulated import basic_pairs, simulate

    if not (folder / "reward" / "config.json").exists():
        simulated = Simulated(output_dir=str(folder / "rankings"), size=32, basic_colours=True, count=options.rankings)
        rankings = simulate(simulated)
        arguments = [
            "--rankings",
            rankings,
            "--output_dir",
            folder / "reward",
            "--max_train_steps",
            options.train_steps,
        ]
        script = runpy.run_path(str(SCRIPT))
        script["main"](parse(script["Options"], [*LEARNS, *map(str, arguments)]))
    exact, tool = load_reward("fill50k"), reranker(load_reward(folder / "reward"))

    texts = [f"{circle} circle with {background} background" for circle, background in basic_pairs("test")]
    print(
        "\n| guidance | deviation of 16 | all 16 | the learnt reward's best | gain | 95 % | the exact reward's best |\n|---|---|---|---|---|---|---|"
    )
    for guidance in (1.0, 2.0):

        def draw(at: int, text: str, guidance: float = guidance) -> dict:
            settings = {"num_candidates": 16, "keep": 16, "chunk_size": 16, "seed": 500_000 + seed_of(at)}
            images = tool(text, **settings, **drawing(options) | {"guidance_scale": guidance}).images
            return {"exact": exact.score(text, images).tolist()}  # in the order of the learnt reward

        name = f"learnt-{options.steps}-{guidance}"
        found = [rows(f"{name}-{at}", lambda at=at, text=text: draw(at, text)) for at, text in enumerate(texts)]
        rewards = np.array([row["exact"] for row in found])
        gain = rewards[:, 0] - rewards.mean(1)
        low, high = interval(gain[:, None])[:, 0]
        print(
            f"| {guidance:g} | {rewards.std(1, ddof=1).mean():.2f} | {rewards.mean():.2f} | {rewards[:, 0].mean():.2f} "
            f"| {gain.mean():+.2f} | {low:+.2f} to {high:+.2f} | {rewards.max(1).mean():.2f} |"
        )
    print(f"\n{len(texts)} prompts of colour pairs in no ranking and no training picture")


# ------------------------------------------------------------------ time


def speed(options: Options, folder: Path, rows: Rows) -> None:
    """Interleaved turns: the loop that people write, and the reranker, at 8 candidates."""
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

    sides = {
        "loop": loop,
        "chunks of 4": best_of(tool, text, 4, options),
        "chunks of 8": best_of(tool, text, 8, options),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        for name, side in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            if turn:  # the first one warms up
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print("\n| 8 candidates | wall s | CPU s | wall against the loop | CPU against the loop |\n|---|---|---|---|---|")
    for name, spent in seconds.items():
        wall, cpu = np.median(spent, axis=0)
        ratio = np.median(np.array(spent) / np.array(seconds["loop"]), axis=0)  # of each turn
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {ratio[0]:.2f} | {ratio[1]:.2f} |")


def best_of(tool, text: str, chunk_size: int, options: Options) -> Callable:
    return lambda: tool(text, num_candidates=8, keep=1, chunk_size=chunk_size, seed=0, **drawing(options))


if __name__ == "__main__":
    run(main, Options)
