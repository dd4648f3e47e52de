"""Rankings whose truth is known: fill50k's circles, spoilt in known ways, ordered by simulated people.

The exact reward of a picture is how well its colours answer the prompt, r* = −(ΔE of the circle + ΔE of the background) /
SCALE in CIEDE2000, measured on the picture itself (`metrics.fill50k`). A person of temperature T sees r*/T plus
Gumbel noise and sorts, so that each pair is ordered by Bradley & Terry's (1952) probability,

    P(i before j) = σ((r*_i − r*_j) / T),

and the accuracy that no reward can exceed on average is known: `bayes_accuracy`.

    python -m diffusers_ext.data.simulated_rankings --output_dir data/circle-rankings --count 1000

writes rankings.jsonl, the pictures, and truth.jsonl with the exact rewards by id.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from tqdm.auto import tqdm

from .. import randomness
from ..options import option
from . import fill50k
from .rankings import RankedPrompt, Ranking, write

SCALE = 20.0  # CIEDE2000 that makes one unit of reward
TRUTH = "truth.jsonl"


# The sixteen colours of HTML 4: a vocabulary that a small model learns from few rankings.
BASIC = [
    "aqua",
    "black",
    "blue",
    "fuchsia",
    "gray",
    "green",
    "lime",
    "maroon",
    "navy",
    "olive",
    "purple",
    "red",
    "silver",
    "teal",
    "white",
    "yellow",
]


def exact_rewards(images: Any, prompt: str) -> np.ndarray:
    """Return r* of N pictures that answer one fill50k prompt, (N,) float64; images as in `metrics.fill50k.colour_error`."""
    from ..metrics.fill50k import colour_error

    circle, background = colour_error(images, [prompt] * len(images))
    return -(circle + background) / SCALE


def rank(rewards: np.ndarray, annotator: str, temperature: float, seed: int, index: int) -> Ranking:
    """Let a simulated person order pictures of exact rewards (K,); the order is a function of (seed, annotator, index)."""
    noise = randomness.generator(seed, f"annotator-{annotator}", index).gumbel(size=len(rewards))
    order = np.argsort(-(np.asarray(rewards) / temperature + noise))
    return Ranking(annotator, tuple((np.argsort(order) + 1).tolist()))


def bayes_accuracy(rewards: Sequence[np.ndarray], temperature: float) -> float:
    """Return the expected accuracy of the exact rewards on the pairs of N prompts: E σ(|r*_i − r*_j| / T)."""
    gaps = [np.abs(each[:, None] - each[None, :])[np.triu_indices(len(each), 1)] for each in map(np.asarray, rewards)]
    return float((1 / (1 + np.exp(-np.concatenate(gaps) / temperature))).mean())


def scene(options: "Options", index: int) -> fill50k.Scene:
    """Draw fill50k's scene of that number, with --basic_colours in a pair of these, of the same split."""
    drawn = fill50k.scene(index, options.seed, options.split)
    if not options.basic_colours:
        return drawn
    pairs = basic_pairs(options.split)
    chosen = randomness.generator(options.seed, f"basic-{options.split}", index).integers(len(pairs))
    return replace(drawn, circle=pairs[chosen][0], background=pairs[chosen][1])


@functools.lru_cache(maxsize=2)
def basic_pairs(split: str) -> list[tuple[str, str]]:
    """Return fill50k's pairs of a split whose both colours are basic."""
    return [pair for pair in fill50k.colour_pairs(split) if {*pair} <= set(BASIC)]


def spoilt(scene: fill50k.Scene, size: int, draw: np.random.Generator) -> Image.Image:
    """Draw a scene with its colours moved towards others by a random share, and perhaps blur, noise, or no circle."""
    colours = list(fill50k.css_colours().values())
    moved = []
    for name in (scene.circle, scene.background):
        share = draw.beta(0.6, 1.2)
        other = np.array(colours[draw.integers(len(colours))])
        moved.append((1 - share) * np.array(fill50k.css_colours()[name]) + share * other)
    cover = fill50k.cover(scene, size)[..., None] * (draw.random() > 0.1)
    pixels = cover * moved[0] + (1 - cover) * moved[1]
    if draw.random() < 0.25:
        pixels = pixels + draw.normal(0, draw.uniform(2, 12), pixels.shape)
    image = Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
    if draw.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.5, 2) * size / 64))
    return image


@dataclass
class Options:
    output_dir: str = option("data/circle-rankings", "the folder to write")
    count: int = option(1000, "number of prompts")
    images: int = option(6, "pictures of each prompt")
    annotators: int = option(1, "people who rank each prompt")
    temperature: float = option(0.5, "their noise: at 0.5 they err in one pair of six, at 0.25 in one of ten")
    size: int = option(64, "side of the square pictures, in pixels")
    basic_colours: bool = option(False, "only the sixteen basic colours, which takes fewer rankings to learn")
    seed: int = option(0, "another seed gives other circles, faults and noise")
    split: str = option("train", "train, or test: colour pairs that never occur in train", ("train", "test"))


def simulate(options: Options) -> Path:
    """Write rankings.jsonl with its pictures and truth.jsonl; return the path of rankings.jsonl."""
    folder = Path(options.output_dir)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    prompts, truth = [], []
    for index in tqdm(range(options.count), desc="simulating", unit="prompt", delay=3):
        drawn = scene(options, index)
        draws = [
            randomness.generator(options.seed, f"spoilt-{options.split}", index, at) for at in range(options.images)
        ]
        images = [spoilt(drawn, options.size, draw) for draw in draws]
        paths = [folder / "images" / f"{index:06d}-{at}.png" for at in range(len(images))]
        for image, path in zip(images, paths):
            image.save(path)
        rewards = exact_rewards(images, drawn.prompt)
        person = functools.partial(rank, rewards, temperature=options.temperature, seed=options.seed, index=index)
        people = tuple(person(annotator=f"simulated-{number}") for number in range(options.annotators))
        prompts.append(
            RankedPrompt(f"{options.split}-{index:06d}", drawn.prompt, tuple(paths), people, split=options.split)
        )
        truth.append({"id": prompts[-1].id, "rewards": rewards.round(6).tolist()})
    (folder / TRUTH).write_text("".join(json.dumps(row) + "\n" for row in truth), encoding="utf-8")
    return write(folder / "rankings.jsonl", prompts)


def read_truth(folder: Path) -> dict[str, np.ndarray]:
    """Return the exact rewards, (K,) by id, that `simulate` wrote."""
    lines = (Path(folder) / TRUTH).read_text(encoding="utf-8").splitlines()
    return {row["id"]: np.array(row["rewards"]) for row in map(json.loads, lines)}


if __name__ == "__main__":
    from ..options import parse

    print(simulate(parse(Options, description=__doc__)))
