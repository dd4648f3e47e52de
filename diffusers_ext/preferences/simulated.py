"""Rankings whose truth is known: fill50k's circles, drawn or made by the embedded model, spoilt and ranked by simulated people.

The exact reward of a picture is how well its colours answer the prompt, r* = −(ΔE of the circle + ΔE of the background) /
SCALE in CIEDE2000, measured on the picture itself (`toy.measures`). A person of temperature T sees r*/T plus
Gumbel noise and sorts, so that each pair is ordered by Bradley & Terry's (1952) probability,

    P(i before j) = σ((r*_i − r*_j) / T),

and the accuracy that no reward can exceed on average is known: `bayes_accuracy`.

    python -m diffusers_ext.preferences.simulated --output_dir data/circle-rankings --count 1000

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
from scipy.ndimage import binary_dilation
from tqdm.auto import tqdm

from .. import randomness
from ..lines import read_lines
from ..options import COUNT, POSITIVE, SEED, Range, option, run
from ..toy import circles as fill50k
from ..toy.measures import colour_error, find_circle
from .rankings import RankedPrompt, Ranking, write

SCALE = 20.0  # CIEDE2000 that makes one unit of reward
DRAWN, STEPS, GUIDANCE = 32, 8, 4.0  # the embedded model's pictures: in a batch, steps of DPM-Solver++, guidance
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
    """Return r* of N pictures that answer one fill50k prompt, (N,) float64; images as in `toy.measures.colour_error`."""
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


def layers(scene: fill50k.Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a scene's circle and background, each (1, 1, 3) in 0..255, and how much the circle covers, (H, W, 1)."""
    circle, background = (
        np.array(fill50k.css_colours()[name])[None, None] for name in (scene.circle, scene.background)
    )
    return circle, background, fill50k.cover(scene, size)[..., None]


def layers_of(image: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the same of a picture: itself, its background with the hole filled, both (H, W, 3), and the mask found."""
    pixels = np.asarray(image.convert("RGB")).astype(float)
    found = find_circle(pixels.astype(np.uint8))
    hole = binary_dilation(found, iterations=2)  # with the edge, which belongs to neither
    background = np.where(hole[..., None], np.median(pixels[~hole], axis=0), pixels)
    return pixels, background, found[..., None].astype(float)


def spoilt(circle: np.ndarray, background: np.ndarray, cover: np.ndarray, draw: np.random.Generator) -> Image.Image:
    """Move the colours of both layers towards others by a random share; perhaps blur, noise, or no circle."""
    colours = list(fill50k.css_colours().values())
    moved = []
    for layer in (circle, background):
        share = draw.beta(0.6, 1.2)
        other = np.array(colours[draw.integers(len(colours))])
        moved.append((1 - share) * layer + share * other)
    cover = cover * (draw.random() > 0.1)
    pixels = cover * moved[0] + (1 - cover) * moved[1]
    if draw.random() < 0.25:
        pixels = pixels + draw.normal(0, draw.uniform(2, 12), pixels.shape)
    image = Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
    if draw.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.5, 2) * len(cover) / 64))
    return image


def embedded_pictures(prompts: Sequence[str], seed: int, split: str) -> list[Image.Image]:
    """Let the embedded model draw one picture per prompt, 64 x 64, each from a seed of its own."""
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    from ..diffusion.draw import draw
    from ..toy.embedded import embedded_model

    pipe = DiffusionPipeline.from_pretrained(embedded_model())
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    seeds = [int(randomness.generator(seed, f"picture-{split}", at).integers(2**63)) for at in range(len(prompts))]
    pictures: list[Image.Image] = []
    for first in tqdm(range(0, len(prompts), DRAWN), desc="drawing", unit="batch", delay=3):
        chunk = slice(first, first + DRAWN)
        pictures += draw(pipe, prompts[chunk], seeds[chunk], DRAWN, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    return pictures


@dataclass
class Options:
    output_dir: str = option("data/circle-rankings", "the folder to write", path="folder")
    count: int = option(1000, "number of prompts", COUNT)
    images: int = option(6, "pictures of each prompt", Range(2))
    annotators: int = option(1, "people who rank each prompt", COUNT)
    temperature: float = option(0.5, "their noise: at 0.5 they err in one pair of six, at 0.25 in one of ten", POSITIVE)
    pictures: str = option(
        "drawn", "what is spoilt: circles drawn exactly, or what the embedded model makes", ("drawn", "embedded")
    )
    size: int = option(
        64,
        "side of the square pictures, in pixels; the embedded model's are 64",
        COUNT,
        requires={"pictures": ("drawn",)},
    )
    basic_colours: bool = option(False, "only the sixteen basic colours, which takes fewer rankings to learn")
    seed: int = option(0, "another seed gives other circles, faults and noise", SEED)
    split: str = option("train", "train, or test: colour pairs that never occur in train", ("train", "test"))


def simulate(options: Options) -> Path:
    """Write rankings.jsonl with its pictures and truth.jsonl; return the path of rankings.jsonl."""
    folder = Path(options.output_dir)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    prompts, truth = [], []
    scenes = [scene(options, index) for index in range(options.count)]
    if options.pictures == "embedded":
        made = embedded_pictures([drawn.prompt for drawn in scenes], options.seed, options.split)
    for index, drawn in enumerate(tqdm(scenes, desc="simulating", unit="prompt", delay=3)):
        parts = layers_of(made[index]) if options.pictures == "embedded" else layers(drawn, options.size)
        draws = [
            randomness.generator(options.seed, f"spoilt-{options.split}", index, at) for at in range(options.images)
        ]
        images = [spoilt(*parts, draw) for draw in draws]
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
    lines = read_lines(Path(folder) / TRUTH)
    return {row["id"]: np.array(row["rewards"]) for row in map(json.loads, lines)}


if __name__ == "__main__":
    run(lambda options: print(simulate(options)), Options, description=__doc__)
