"""What a search over the initial noise gains over best-of-N, at equal cost, and what a reward that chose nothing says of it.

    python benchmarks/noise_search.py --output_dir runs/noise-search

The embedded model draws held-out prompts in a few DDIM steps; the soft colour reward chooses, the exact one is held out. In
turns for every prompt: best-of-N, local search, gradient search, of one budget and one seed. Then the gradient search with a
reward that knows nothing, an untrained network: its score rises as well. Prints tables of means and 95 % intervals of the mean
over prompts, and writes curves.png, grid.png and results.json. About three minutes of CPU time on one core.
"""

import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, POSITIVE, option, run

METHODS = {"best-of-N": {}, "local": {"method": "local"}, "gradient": {"method": "gradient"}}
NOTHING = "gradient, a reward that knows nothing"


@dataclass
class Options:
    output_dir: str = option("runs/noise-search", "where curves, grid and results are written")
    prompts: int = option(6, "held-out prompts, each with a seed of its own", COUNT)
    budget: int = option(48, "pictures of each search", COUNT)
    num_inference_steps: int = option(4, "DDIM steps of a picture", COUNT)
    radius: float = option(0.5, "of the local search", POSITIVE)
    learning_rate: float = option(5.0, "of the gradient search", POSITIVE)


def main(options: Options) -> None:
    import torch

    from diffusers_ext import embedded_model, load_reward
    from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
    from diffusers_ext.rewards.tiny import image_reward
    from diffusers_ext.toy.circles import scene

    torch.set_num_threads(1)
    pipe = NoiseSearchPipeline.from_pretrained(embedded_model(), reward_model=load_reward("fill50k:soft"))
    held_out = load_reward("fill50k")
    prompts = [scene(index, split="test").prompt for index in range(options.prompts)]
    torch.manual_seed(0)
    nothing = image_reward(prompts).eval().requires_grad_(False)
    searches = {name: [] for name in [*METHODS, NOTHING]}
    for seed, prompt in enumerate(prompts):
        for name, settings in METHODS.items():
            searches[name].append(search(pipe, prompt, 100 * seed, held_out, options, settings))
        if seed < options.prompts // 2:
            knowing, pipe.reward_model = pipe.reward_model, nothing
            settings = METHODS["gradient"]
            searches[NOTHING].append(search(pipe, prompt, 100 * seed, held_out, options, settings))
            pipe.reward_model = knowing
        print(f"{seed + 1} of {len(prompts)} prompts", flush=True)
    report(Path(options.output_dir), searches, prompts)


def search(pipe, prompt: str, seed: int, held_out, options: Options, settings: dict) -> dict:
    """Run one search; return its history, its first picture, its best one and its CPU seconds."""
    drawing = {"num_inference_steps": options.num_inference_steps, "guidance_scale": 2.0, "seed": seed}
    start = time.process_time()
    if settings:
        tuned = {"radius": options.radius, "learning_rate": options.learning_rate}
        found = pipe(prompt, num_candidates=options.budget, held_out=held_out, **drawing, **tuned, **settings)
        history = found.history
    else:
        found, history = best_of_n(pipe, prompt, held_out, options.budget, drawing)
    seconds = time.process_time() - start
    first = pipe(prompt, num_candidates=1, starts=1, held_out=held_out, **drawing)
    return {
        "history": [{**first.history[0], "evaluations": 2 * options.num_inference_steps}, *history],
        "first": first.images[0],
        "best": found.images[0],
        "seconds": seconds,
    }


def best_of_n(pipe, prompt: str, held_out, budget: int, drawing: dict) -> tuple:
    """Best-of-N by the class of diffusers_ext.rerank.reranker around the plain pipeline, and its course as if N had been smaller."""
    from diffusers import StableDiffusionPipeline

    from diffusers_ext.rerank.noise_search import WatchedReward
    from diffusers_ext.rerank.reranker import RewardReranker

    plain = StableDiffusionPipeline(**{name: part for name, part in pipe.components.items() if name != "reward_model"})
    found = RewardReranker(plain, WatchedReward(pipe.reward_model, held_out))(
        prompt, num_candidates=budget, keep=1, **drawing
    )
    by_number = sorted(found.candidates[0], key=lambda candidate: candidate.number)
    history = []
    for drawn in range(4, budget + 1, 4):
        best = max(by_number[:drawn], key=lambda candidate: candidate.score)
        evaluations = found.evaluations * drawn // budget
        history.append({"evaluations": evaluations, "score": best.score, "held_out": best.parts["held_out"]})
    return found, history


def report(folder: Path, searches: dict[str, list[dict]], prompts: list[str]) -> None:
    """Print the tables; write curves, grid and results."""
    from diffusers_ext.figures import labelled_grid, plot_curves

    folder.mkdir(parents=True, exist_ok=True)
    print(
        "\n| search | evaluations | CPU s | reward, N = 1 | reward | held out, N = 1 | held out |\n|---|---|---|---|---|---|---|"
    )
    for name, runs in searches.items():
        first, last = [run["history"][0] for run in runs], [run["history"][-1] for run in runs]
        cells = [mean([row[key] for row in rows]) for key in ("score", "held_out") for rows in (first, last)]
        seconds = statistics.mean(run["seconds"] for run in runs)
        print(f"| {name} | {last[0]['evaluations']} | {seconds:.1f} | {' | '.join(cells)} |")
    for name in ("local", "gradient"):
        for key in ("score", "held_out"):
            pairs = zip(searches[name], searches["best-of-N"])
            gains = [one["history"][-1][key] - other["history"][-1][key] for one, other in pairs]
            print(f"{name} over best-of-N, {key}: {mean(gains)}, better on {sum(g > 0 for g in gains)} of {len(gains)}")
    curves = {}
    for name in METHODS:
        for key, label in (("score", "soft reward"), ("held_out", "held out")):
            rows = list(zip(*(run["history"] for run in searches[name])))
            means = [statistics.mean(each[key] for each in row) for row in rows]
            curves[f"{name}, {label}"] = ([row[0]["evaluations"] for row in rows], means)
    plot_curves(folder / "curves.png", curves, "network evaluations", "reward of the best so far")
    columns = ["N = 1", *METHODS]
    shown = range(min(6, len(prompts)))
    rows = [[searches["local"][at]["first"], *(searches[name][at]["best"] for name in METHODS)] for at in shown]
    labelled_grid(rows, columns, [prompts[at] for at in shown]).save(folder / "grid.png")
    records = {name: [[run["history"], run["seconds"]] for run in runs] for name, runs in searches.items()}
    (folder / "results.json").write_text(json.dumps(records))


def mean(values: list[float]) -> str:
    """The mean and half its 95 % interval."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


if __name__ == "__main__":
    run(main, Options)
