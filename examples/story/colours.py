"""Shapes of eight colours in five styles of drawing, as labelled pictures and as captioned ones; no two are the same.

    python examples/story/colours.py --folder runs/story

colours/ has pictures with class (the colour) and domain (the style), half of each to train on and half to test on. captioned/ has
other drawings in all styles, with sentences that name colour, style and shape. Beside them the two towers of a small image-text
model, both with random weights: tower/ (timm's test_resnet, whose pooled features tell colours by chance alone) and text/ (a
BERT of two layers and a vocabulary of the captions' words).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diffusers_ext import randomness
from diffusers_ext.options import COUNT, option, run

SIZE, FINER = 64, 4  # pixels of a side; how much finer it is drawn before it is scaled down
STYLES = {
    "filled": "a filled {} shape",
    "outlined": "an outlined {} shape",
    "cut out": "a cut out {} shape",
    "dark": "a dark {} shape",
    "washed out": "a washed out {} shape",
}
COLOURS = {
    "red": (210, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (235, 220, 40),
    "green": (40, 160, 60),
    "cyan": (40, 200, 210),
    "blue": (40, 70, 210),
    "purple": (140, 50, 170),
    "brown": (130, 80, 40),
}
VARIES = 14  # deviation of a colour from picture to picture, of 255


def star(points: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners around the origin at distance 1, those between them at `inner`; at 1 a regular polygon."""
    corners = points * (1 if inner == 1 else 2)
    radii = [inner if number % 2 and inner != 1 else 1.0 for number in range(corners)]
    angles = [2 * math.pi * number / corners for number in range(corners)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in zip(radii, angles)]


SHAPES = {"circle": star(48), "square": star(4), "triangle": star(3), "hexagon": star(6), "star": star(5, 0.42)}


def picture(use: str, colour: str, style: str, number: int) -> tuple[Image.Image, str]:
    """Return drawing `number` of a colour in a style, SIZE x SIZE, and its shape's name; each use has drawings of its own.

    The shape's radius is 0.2 to 0.36 of the side, turned anyhow, whole inside the picture; the paper is some light grey.
    """
    draw = randomness.generator(0, f"drawings-{use}-{colour}-{style}", number)
    shape = list(SHAPES)[draw.integers(len(SHAPES))]
    radius, angle = draw.uniform(0.2, 0.36), draw.uniform(0, 2 * math.pi)
    centre = draw.uniform(radius + 0.03, 0.97 - radius, size=2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = (centre + radius * np.array(SHAPES[shape]) @ turn.T) * SIZE * FINER
    ink = np.array(COLOURS[colour]) + draw.normal(0, VARIES, 3)
    paper = np.full(3, draw.uniform(190, 255))
    if style == "dark":
        ink, paper = 0.45 * ink, 0.2 * paper
    if style == "washed out":
        ink = 0.35 * ink + 0.65 * paper
    return paint([tuple(corner) for corner in corners], style, ink, paper), shape


def paint(corners: list[tuple], style: str, ink: np.ndarray, paper: np.ndarray) -> Image.Image:
    """Draw the shape in ink on paper, or cut it out of ink, or its outline alone."""
    shape, ground = (tuple(np.rint(colour.clip(0, 255)).astype(int).tolist()) for colour in (ink, paper))
    if style == "cut out":
        shape, ground = ground, shape
    page = Image.new("RGB", (SIZE * FINER,) * 2, ground)
    if style == "outlined":
        ImageDraw.Draw(page).line([*corners, *corners[:2]], shape, width=2 * FINER, joint="curve")
    else:
        ImageDraw.Draw(page).polygon(corners, shape)
    return page.resize((SIZE, SIZE), Image.Resampling.BOX)


@dataclass
class Options:
    folder: str = option("runs/story", "the story's folder")
    drawings: int = option(
        40, "labelled drawings of each colour in each style to train on, and as many to test on", COUNT
    )
    captioned: int = option(150, "captioned drawings of each colour in each style", COUNT)


def main(options: Options) -> None:
    folder = Path(options.folder)
    for name, uses, count in (
        ("colours", ("train", "test"), options.drawings),
        ("captioned", ("captioned",), options.captioned),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        cells = [(use, colour, style) for use in uses for colour in COLOURS for style in STYLES]
        rows = [write(folder / name, *cell, at) for cell in cells for at in range(count)]
        table = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "metadata.jsonl").write_text(table, encoding="utf-8")
        print(f"{folder / name}: {len(rows)} pictures")
    vision_tower(folder / "tower")
    text_tower(folder / "text")


def write(folder: Path, use: str, colour: str, style: str, number: int) -> dict:
    """Save a drawing and return its row."""
    image, shape = picture(use, colour, style, number)
    name = f"{use}-{style.replace(' ', '-')}-{colour}-{number:04d}.png"
    image.save(folder / name)
    if use != "captioned":
        return {"file_name": name, "label": colour, "domain": style.replace(" ", "_"), "split": use}
    return {
        "file_name": name,
        "text": [STYLES[style].format(colour), STYLES[style].replace("shape", shape).format(colour)],
    }


def vision_tower(folder: Path) -> None:
    """A timm network with random weights, as a file that `timm:test_resnet@FILE` reads."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "weights.safetensors")


def text_tower(folder: Path) -> None:
    """A small BERT with random weights that knows the captions' words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = " ".join([*COLOURS, *STYLES.values(), *SHAPES, "coloured"]).replace("{}", "").split()
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words)]
    BertTokenizer(vocab={word: index for index, word in enumerate(known)}).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(known), max_position_embeddings=32, **shape)).save_pretrained(folder)


if __name__ == "__main__":
    run(main, Options)
