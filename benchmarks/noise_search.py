"""What does a search over the initial noise gain over best-of-N, at equal cost?

    python benchmarks/noise_search.py --output_dir runs/noise-search      # three CPU minutes

The embedded model draws held-out prompts in a few DDIM steps; the soft colour reward chooses, the exact one is held out. In
turns for every prompt: best-of-N, local search, gradient search, of one budget and one seed. Then the gradient search
with a reward that knows nothing, an untrained network: its score rises as well.

Columns: network evaluations and CPU seconds of a search; the reward that chooses and the held-out one, of a single
picture (N = 1) and of the picture chosen, means over prompts. The second table has the gains over best-of-N by prompt.
Writes curves.png and grid.png into --output_dir.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from harness import BenchmarkOptions, Report, run, timed
from spreads import interval

from diffusers_ext.options import COUNT, POSITIVE, option

METHODS = {"best-of-N": {}, "local": {"method": "local"}, "gradient": {"method": "gradient"}}
NOTHING = "gradient, a reward that knows nothing"


@dataclass
class Options(BenchmarkOptions):
    output_dir: str = option("runs/noise-search", "folder for curves and grid")
    prompts: int = option(6, "held-out prompts, each with a seed of its own", COUNT)
    budget: int = option(48, "pictures of each search", COUNT)
    num_inference_steps: int = option(4, "DDIM steps of a picture", COUNT)
    radius: float = option(0.5, "radius of the local search", POSITIVE)
    learning_rate: float = option(5.0, "learning rate of the gradient search", POSITIVE)


def main(options: Options, report: Report) -> None:
    import torch

    from diffusers_ext import embedded_model, load_reward
    from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
    from diffusers_ext.rewards.tiny import image_reward
    from diffusers_ext.toy.circles import scene

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
    tables(searches, report)
    pictures(Path(options.output_dir), searches, prompts)


def search(pipe, prompt: str, seed: int, held_out, options: Options, settings: dict) -> dict:
    """Run a search; return its history, its first picture, its best picture and its CPU seconds."""
    drawing = {"num_inference_steps": options.num_inference_steps, "guidance_scale": 2.0, "seed": seed}
    tuned = {"radius": options.radius, "learning_rate": options.learning_rate}

    def act() -> tuple:
        if not settings:
            return best_of_n(pipe, prompt, held_out, options.budget, drawing)
        result = pipe(prompt, num_candidates=options.budget, held_out=held_out, **drawing, **tuned, **settings)
        return result, result.history

    seconds, _, (result, history) = timed(act)
    first = pipe(prompt, num_candidates=1, starts=1, held_out=held_out, **drawing)
    return {
        "history": [{**first.history[0], "evaluations": 2 * options.num_inference_steps}, *history],
        "first": first.images[0],
        "best": result.images[0],
        "seconds": seconds,
    }


def best_of_n(pipe, prompt: str, held_out, budget: int, drawing: dict) -> tuple:
    """Return what `RewardReranker` chooses with the plain pipeline, and its history as if N had been smaller."""
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


def tables(searches: dict[str, list[dict]], report: Report) -> None:
    rows = []
    for name, runs in searches.items():
        first, last = [run["history"][0] for run in runs], [run["history"][-1] for run in runs]
        row = {"search": name, "evaluations": last[0]["evaluations"]}
        row["CPU s"] = statistics.mean(run["seconds"] for run in runs)
        for key, label in (("score", "reward"), ("held_out", "held out")):
            row[f"{label}, N = 1"] = interval([step[key] for step in first])
            row[label] = interval([step[key] for step in last])
        rows.append(row)
    report.table("searches", rows, ".2f")
    rows = []
    for name in ("local", "gradient"):
        for key, label in (("score", "reward"), ("held_out", "held out")):
            pairs = zip(searches[name], searches["best-of-N"])
            gains = [search["history"][-1][key] - best["history"][-1][key] for search, best in pairs]
            better = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
            rows.append({"search": name, "by": label, "gain": interval(gains), "better on prompts": better})
    report.table("gain over best-of-N", rows, "+.2f")


def pictures(folder: Path, searches: dict[str, list[dict]], prompts: list[str]) -> None:
    """Write the rewards by evaluations as curves.png, and what each search chose as grid.png."""
    from diffusers_ext.figures import labelled_grid, plot_curves

    folder.mkdir(parents=True, exist_ok=True)
    curves = {}
    for name in METHODS:
        for key, label in (("score", "soft reward"), ("held_out", "held out")):
            looks = list(zip(*(run["history"] for run in searches[name])))
            means = [statistics.mean(step[key] for step in look) for look in looks]
            curves[f"{name}, {label}"] = ([look[0]["evaluations"] for look in looks], means)
    plot_curves(folder / "curves.png", curves, "network evaluations", "reward of the best so far")
    shown = range(min(6, len(prompts)))
    grid = [
        [searches["local"][index]["first"], *(searches[name][index]["best"] for name in METHODS)] for index in shown
    ]
    labelled_grid(grid, ["N = 1", *METHODS], [prompts[index] for index in shown]).save(folder / "grid.png")


if __name__ == "__main__":
    run(main, Options)
