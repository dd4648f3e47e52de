"""fill50k, regenerated: the ControlNet tutorial's circles, with everything about them known.

A sample is the outline of a circle, white on black (the condition), the filled circle on a background (the target) and
the prompt "<colour> circle with <colour> background", in the CSS colour names. The scenes are drawn from
(seed, split, index), so any sample of any size can be made again alone, and nothing needs to be downloaded.

    python -m diffusers_ext.toy.circles --output_dir data/fill50k --count 1000 --size 64

writes an image folder whose metadata.jsonl has `file_name`, `conditioning_image_file_name`, `text` and the truth.
One colour pair in sixteen never occurs in the split "train" and is all that occurs in the split "test".

Shapes: N images, H = W = size.
"""

import json
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor
from skimage.color import deltaE_ciede2000, rgb2lab

from .. import randomness
from ..data.batches import Samples
from ..data.tensors import to_tensor
from ..options import COUNT, SEED, option, run

# The words of which the CSS names are made, to write "darkslategray" as a person would: "dark slate gray".
_WORDS = [
    "alice",
    "almond",
    "antique",
    "aqua",
    "aquamarine",
    "azure",
    "beige",
    "bisque",
    "black",
    "blanched",
    "blue",
    "brown",
    "burly",
    "cadet",
    "chartreuse",
    "chiffon",
    "chocolate",
    "coral",
    "cornflower",
    "cornsilk",
    "cream",
    "crimson",
    "cyan",
    "dark",
    "deep",
    "dim",
    "dodger",
    "drab",
    "fire",
    "firebrick",
    "floral",
    "forest",
    "fuchsia",
    "gainsboro",
    "ghost",
    "gold",
    "goldenrod",
    "gray",
    "green",
    "honeydew",
    "hot",
    "indian",
    "indigo",
    "ivory",
    "khaki",
    "lace",
    "lavender",
    "lawn",
    "lemon",
    "light",
    "lime",
    "linen",
    "magenta",
    "maroon",
    "medium",
    "midnight",
    "mint",
    "misty",
    "moccasin",
    "navajo",
    "navy",
    "old",
    "olive",
    "orange",
    "orchid",
    "pale",
    "papaya",
    "peach",
    "peru",
    "pink",
    "plum",
    "powder",
    "puff",
    "purple",
    "rebecca",
    "red",
    "rose",
    "rosy",
    "royal",
    "saddle",
    "salmon",
    "sandy",
    "sea",
    "seashell",
    "sienna",
    "silver",
    "sky",
    "slate",
    "smoke",
    "snow",
    "spring",
    "steel",
    "tan",
    "teal",
    "thistle",
    "tomato",
    "turquoise",
    "violet",
    "wheat",
    "whip",
    "white",
    "wood",
    "yellow",
    "blush",
]

MIN_CONTRAST = (
    20.0  # CIEDE2000 between circle and background: below it the circle can hardly be seen, let alone measured
)
OUTLINE_WIDTH = 1.5 / 64  # of the image's side


@lru_cache(maxsize=1)
def css_colours() -> dict[str, tuple[int, int, int]]:
    """Return the CSS colours as {"dark slate gray": (47, 79, 79), ...}, one name per colour, sorted."""
    word = "|".join(sorted(_WORDS, key=len, reverse=True))
    colours: dict[tuple, str] = {}
    for name in sorted(ImageColor.colormap):
        if "grey" not in name:
            colours.setdefault(ImageColor.getrgb(name), " ".join(re.findall(word, name)))
    return {name: rgb for rgb, name in sorted(colours.items(), key=lambda item: item[1])}


@lru_cache(maxsize=2)
def colour_pairs(split: str) -> list[tuple[str, str]]:
    """Return the (circle, background) pairs of a split that contrast enough; a pair's split depends on its names only."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    names = list(css_colours())
    lab = rgb2lab(np.array(list(css_colours().values()))[None] / 255.0)[0]
    contrast = deltaE_ciede2000(lab[:, None], lab[None])
    held_out = [[zlib.crc32(f"{circle}/{background}".encode()) % 16 == 0 for background in names] for circle in names]
    chosen = (contrast >= MIN_CONTRAST) & (np.array(held_out) == (split == "test"))
    return [(names[circle], names[background]) for circle, background in np.argwhere(chosen)]


@dataclass(frozen=True)
class Scene:
    """A circle: centre and radius as fractions of the image's side, and the names of its colours."""

    x: float
    y: float
    radius: float
    circle: str
    background: str

    @property
    def prompt(self) -> str:
        return f"{self.circle} circle with {self.background} background"


def scene(index: int, seed: int = 0, split: str = "train") -> Scene:
    """Draw scene `index`: radius 0.12 to 0.32 of the side, the whole circle inside the image.

    >>> scene(0).prompt
    'medium turquoise circle with misty rose background'
    """
    draw = randomness.generator(seed, f"fill50k-{split}", index)
    pairs = colour_pairs(split)
    radius = draw.uniform(0.12, 0.32)
    x, y = draw.uniform(radius + 0.03, 0.97 - radius, size=2)
    circle, background = pairs[draw.integers(len(pairs))]
    return Scene(round(x, 4), round(y, 4), round(radius, 4), circle, background)


def draw_target(scene: Scene, size: int) -> np.ndarray:
    """Draw the filled circle on its background: (H, W, 3) uint8, edges antialiased over one pixel.

    >>> draw_target(scene(0), 64).shape
    (64, 64, 3)
    """
    inside = cover(scene, size)[..., None]
    circle, background = (np.array(css_colours()[name]) for name in (scene.circle, scene.background))
    return np.rint(inside * circle + (1 - inside) * background).astype(np.uint8)


def cover(scene: Scene, size: int) -> np.ndarray:
    """Return the share of each pixel that the circle covers: (H, W) in [0, 1]."""
    return np.clip(-_signed_distance(scene, size) + 0.5, 0, 1)


def draw_condition(scene: Scene, size: int) -> np.ndarray:
    """Draw the outline, white on black: (H, W, 3) uint8. Its outer edge is the circle's, so that filling it gives the circle."""
    distance, width = _signed_distance(scene, size), max(1.5, OUTLINE_WIDTH * size)
    cover = np.clip(-distance + 0.5, 0, 1) * np.clip(distance + width + 0.5, 0, 1)
    return np.repeat(np.rint(255 * cover).astype(np.uint8)[..., None], 3, axis=2)


def write(folder: str | Path, count: int, size: int = 64, seed: int = 0, split: str = "train") -> Path:
    """Write scenes 0 .. count-1 as an image folder with metadata.jsonl and return it.

    Raises FileExistsError if the folder already holds another metadata.jsonl; the same one is left as it is.
    """
    folder = Path(folder)
    rows = [_row(index, seed, split) for index in range(count)]
    text = "".join(json.dumps({**row, "size": size}) + "\n" for row in rows)
    metadata = folder / "metadata.jsonl"
    if metadata.exists():
        if metadata.read_text(encoding="utf-8") == text:
            return folder
        raise FileExistsError(f"{metadata} holds other data; choose another folder or remove it")
    for name in ("images", "conditions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(rows):
        drawn = scene(index, seed, split)
        Image.fromarray(draw_target(drawn, size)).save(folder / row["file_name"])
        Image.fromarray(draw_condition(drawn, size)).save(folder / row["conditioning_image_file_name"])
    metadata.write_text(text, encoding="utf-8")  # last: its presence says that the folder is complete
    return folder


class Fill50k(Samples):
    """The set as a stream: samples are drawn when asked for, none is stored.

    Each is {"key", "text", "pixel_values" (3, H, W) in [-1, 1], "conditioning_pixel_values" (3, H, W) in [0, 1]}.

    >>> sample = Fill50k(10, size=32)[0, 3]
    >>> sample['pixel_values'].shape, sample['text'] == scene(3).prompt
    (torch.Size([3, 32, 32]), True)
    """

    def __init__(
        self, count: int, size: int = 64, seed: int = 0, split: str = "train", proportion_empty_prompts: float = 0.0
    ):
        self.count, self.size, self.seed, self.split, self.drop = count, size, seed, split, proportion_empty_prompts

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: randomness.Key) -> dict:
        condition = to_tensor(draw_condition(self.scene(key[1]), self.size))
        return {
            "key": key,
            "text": self.caption(key),
            "pixel_values": self.picture(key[1]),
            "conditioning_pixel_values": condition,
        }

    def scene(self, index: int) -> Scene:
        return scene(index, self.seed, self.split)

    def picture(self, index: int) -> torch.Tensor:
        """The target of a scene, (3, H, W) in [-1, 1]."""
        return to_tensor(draw_target(self.scene(index), self.size)) * 2 - 1

    def caption(self, key: randomness.Key) -> str:
        """The prompt of a scene in an epoch, or "" where it is dropped."""
        dropped = randomness.uniform(self.seed, "drop", key) < self.drop
        return "" if dropped else self.scene(key[1]).prompt

    def captions(self) -> list[str]:
        """Every caption of the first thousand scenes, which between them hold every word, once."""
        return sorted({self.scene(index).prompt for index in range(min(self.count, 1000))})


def parse_prompt(prompt: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the RGB colours (0-255) of circle and background that a prompt names; ValueError if it is not of this set."""
    match = re.fullmatch(r"(.+) circle with (.+) background", prompt)
    if not match or not {*match.groups()} <= set(css_colours()):
        raise ValueError(
            f"not a fill50k prompt: {prompt!r}; expected '<colour> circle with <colour> background', CSS names"
        )
    circle, background = match.groups()
    return css_colours()[circle], css_colours()[background]


def is_prompt(text: str) -> bool:
    """Say whether `parse_prompt` reads a text.

    >>> is_prompt('red circle with blue background'), is_prompt('a cat')
    (True, False)
    """
    try:
        parse_prompt(text)
    except ValueError:
        return False
    return True


def _row(index: int, seed: int, split: str) -> dict:
    drawn = scene(index, seed, split)
    return {
        "file_name": f"images/{index:06d}.png",
        "conditioning_image_file_name": f"conditions/{index:06d}.png",
        "text": drawn.prompt,
        **vars(drawn),
    }


def _signed_distance(scene: Scene, size: int) -> np.ndarray:
    """Distance of each pixel's centre from the circle's edge, in pixels, negative inside: (H, W)."""
    centre = np.arange(size) + 0.5
    return np.hypot(centre[None, :] - scene.x * size, centre[:, None] - scene.y * size) - scene.radius * size


@dataclass
class Options:
    output_dir: str = option("data/fill50k", "the folder to write", path="folder")
    count: int = option(1000, "number of samples", COUNT)
    size: int = option(64, "side of the square images, in pixels", COUNT)
    seed: int = option(0, "another seed gives other circles", SEED)
    split: str = option("train", "train, or test: colour pairs that never occur in train", ("train", "test"))


def main(options: Options) -> None:
    folder = write(options.output_dir, options.count, options.size, options.seed, options.split)
    print(f"{options.count} samples in {folder}")


if __name__ == "__main__":
    run(main, Options, description=__doc__)
