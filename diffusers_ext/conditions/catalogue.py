"""Condition images without learned weights, computed from the target picture after the joint crop.

A condition is `condition(image, draw) -> condition image`: (H, W, 3) uint8 RGB in; (H, W, 3) uint8 out, or
(H, W, C) float32 in [0, 1] with -1 as a mark where uint8 cannot hold the values. `draw` is the sample's own generator,
`randomness.generator(seed, "condition", epoch, index)`: thresholds, widths and masks vary from epoch to epoch, and the
same key gives the same condition. Maps are white on black. Lengths in pixels scale with the picture's shorter side.

    python -m diffusers_ext.conditions.catalogue photo.jpg --output sheet.png

draws them all on one picture. Any callable of that signature can be named as "module:callable".

Shapes: H, W the picture's size, B pictures in a batch, K colours.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .. import randomness
from ..data.files import MASKED, load
from ..data.geometry import cover
from ..data.tensors import as_tensor
from ..errors import InputError
from ..options import COUNT, SEED, option, run
from .drawing import (
    FAINT,
    add_box,
    add_stroke,
    canny_edges,
    edge_strength,
    gradients,
    long_strokes,
    quantized,
    scale_of,
    shrunk,
    three_channels,
    through_jpeg,
    to_bytes,
    waves,
)

Condition = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def canny(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Edges one pixel wide, never an empty map where the picture has any structure; a blank one gives black.

    >>> canny(np.zeros((16, 16, 3), np.uint8), np.random.default_rng(0)).shape
    (16, 16, 3)
    """
    low = draw.uniform(20, 120)
    high = low + 80 + draw.uniform(0, 100)
    return three_channels(canny_edges(image, draw.uniform(0.6, 1.2), low, high, draw.uniform(70, 95)))


def scribble(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The long contours of the blurred picture in a broad pen; a blank picture gives black."""
    scale = scale_of(image)
    edges = canny_edges(image, max(1.5, draw.uniform(2, 5) * scale), 60, 200, draw.uniform(75, 95))
    strokes = long_strokes(edges, draw.uniform(30, 80) * scale)
    width = 2 * round(draw.uniform(1, 3) * scale) + 1
    return three_channels(cv2.dilate(strokes, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))))


def lineart(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Ink lines by the extended difference of Gaussians, drawn white on black; flat areas of any colour are black.

    D = G(σ) - τ·G(1.6σ);  paper = 1 where D >= ε, else 1 + tanh(φ·(D - ε))  (Winnemöller et al. 2012, XDoG, eq. 5),
    for each channel; the ink is the strongest channel's.
    """
    sigma, tau = max(0.8, draw.uniform(1, 2) * scale_of(image)), draw.uniform(0.98, 0.995)
    epsilon, phi = draw.uniform(-0.01, -0.003), 200
    colours = image.astype(np.float32) / 255
    difference = cv2.GaussianBlur(colours, (0, 0), sigma) - tau * cv2.GaussianBlur(colours, (0, 0), 1.6 * sigma)
    strongest = reduce(cv2.min, cv2.split(difference))
    return three_channels(to_bytes(-np.tanh(phi * np.minimum(strongest - epsilon, 0))))


def softedge(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Sobel magnitude of the blurred picture, its strongest hundredth white; a blank picture gives black."""
    magnitude = edge_strength(*gradients(image, max(0.8, draw.uniform(1, 2.5) * scale_of(image))))
    # Half the maximum: in a drawing of few lines the strongest hundredth reaches into the paper.
    return three_channels(to_bytes(magnitude / max(np.percentile(magnitude, 99), magnitude.max() / 2, FAINT)))


def lines(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Straight segments of the grey picture (von Gioi et al. 2010, LSD), the short ones left out."""
    canvas = np.zeros(image.shape[:2], np.uint8)
    found = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD).detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    shortest, width = draw.uniform(10, 30) * scale_of(image), max(1, round(draw.uniform(1, 2.4) * scale_of(image)))
    if found is not None:
        ends = found.reshape(-1, 2, 2)
        kept = ends[np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) >= shortest]
        cv2.polylines(canvas, list(np.rint(kept * 16).astype(np.int32)), False, 255, width, cv2.LINE_AA, shift=4)
    return three_channels(canvas)


def tile(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture as a 2 to 8 times smaller copy would show it, half of the copies JPEG-compressed."""
    factor = draw.uniform(2, 8)
    small = shrunk(image, factor)
    if draw.random() < 0.5:
        small = through_jpeg(small, int(draw.integers(40, 96)))
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def palette_grid(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Mean colours of a grid of cells, 4 to 16 along the shorter side (T2I-Adapter's colour condition has 8)."""
    cells = shrunk(image, min(image.shape[:2]) / int(draw.integers(4, 17)))
    return cv2.resize(cells, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def palette_colours(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture in 4 to 16 colours of its own, by median cut."""
    return np.array(quantized(image, int(draw.integers(4, 17))).convert("RGB"))


def blur(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture under a Gaussian of σ 2 to 16 pixels at 512, small and large blurs equally often."""
    sigma = math.exp(draw.uniform(math.log(2), math.log(16))) * scale_of(image)
    return cv2.GaussianBlur(image, (0, 0), max(0.5, sigma))


def grayscale(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Luma of BT.601; nothing is drawn."""
    return three_channels(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def identity(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture itself; nothing is drawn. With masks of its own, a data set trains an inpainting ControlNet by it."""
    return image.copy()


def inpaint(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture as float32 in [0, 1] with one to four boxes or brush strokes set to -1."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for _ in range(draw.integers(1, 5)):
        (add_box if draw.random() < 0.5 else add_stroke)(mask, draw)
    marked = image.astype(np.float32) / 255
    marked[mask.astype(bool)] = MASKED
    return marked


def segmentation(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The colours of a label map, by the PASCAL VOC palette; nothing is drawn.

    image: integer labels, (H, W), or as an image loads them, (H, W, 3) of equal channels. Resize label maps with
    NEAREST before. Raises InputError for a photograph: there are no labels in it.
    """
    if image.ndim == 3:
        if (image != image[..., :1]).any():
            raise InputError(
                "segmentation colours a label map and was given a colour picture; give label maps as the conditions"
            )
        image = image[..., 0]
    return colour_labels(image, voc_palette())


def shuffle(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture's colours and textures, its content out of place: each pixel is read where a smooth noise points.

    Train with `global_pool_conditions=True`: what remains says nothing about places.
    """
    height, width = image.shape[:2]
    x, y = (waves(height, width, draw) for _ in range(2))
    x, y = (cv2.normalize(field, None, 0, side - 1, cv2.NORM_MINMAX) for field, side in ((x, width), (y, height)))
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


CONDITIONS: dict[str, Condition] = {
    "canny": canny,
    "scribble": scribble,
    "lineart": lineart,
    "softedge": softedge,
    "lines": lines,
    "tile": tile,
    "palette_grid": palette_grid,
    "palette_colours": palette_colours,
    "blur": blur,
    "grayscale": grayscale,
    "identity": identity,
    "inpaint": inpaint,
    "segmentation": segmentation,
    "shuffle": shuffle,
}


def resolve(name: str) -> Condition:
    """Return a condition of CONDITIONS, or import "module:callable"; InputError says what is wrong and what there is.

    >>> import numpy as np
    >>> resolve('canny')(np.zeros((16, 16, 3), np.uint8), np.random.default_rng(0)).shape
    (16, 16, 3)
    """
    if name in CONDITIONS:
        return CONDITIONS[name]
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute) or module.startswith("."):
        raise InputError(f"no condition {name!r}; choose {', '.join(CONDITIONS)}, or name your own as module:callable")
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"condition {name}: {error}; the module must be installed or on PYTHONPATH") from None
    found = getattr(imported, attribute, None)
    if found is None:
        raise InputError(f"condition {name}: module {module} has no {attribute!r}")
    if not callable(found):
        raise InputError(
            f"condition {name}: {attribute} is a {type(found).__name__}; it must be a function (image, draw)"
        )
    return found


def colour_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Look up colours: labels (H, W) integers, palette (K, 3) uint8 -> (H, W, 3) uint8.

    Raises InputError if the labels are not integers below K.
    """
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= len(palette):
        raise InputError(
            f"labels must be integers from 0 to {len(palette) - 1}, got {labels.dtype} from {labels.min()} to {labels.max()}"
        )
    return palette[labels]


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC (Everingham et al. 2010), (256, 3) uint8, all distinct.

    Bit 3j + c of the label is bit 7 - j of channel c.
    """
    bits, channels = np.arange(8), np.arange(3)
    set_bits = np.arange(256)[:, None, None] >> (3 * bits + channels[:, None]) & 1
    return (set_bits << (7 - bits)).sum(axis=2).astype(np.uint8)


def contact_sheet(picture: np.ndarray, seed: int) -> Image.Image:
    """Draw every condition of one picture, (H, W, 3) uint8, as epochs 0 and 1 would see it."""
    from ..figures import labelled_grid  # not above: data workers need no matplotlib

    # A picture has no labels; its quantised colours show how a label map is coloured.
    sources = {name: np.array(quantized(picture, 12)) if name == "segmentation" else picture for name in CONDITIONS}
    columns = {"picture": [Image.fromarray(picture)] * 2}
    del sources["identity"]  # the first column
    for name, source in sources.items():
        draws = [
            as_tensor(CONDITIONS[name](source, randomness.generator(seed, "condition", epoch, 0))) for epoch in (0, 1)
        ]
        columns[name] = [Image.fromarray(to_bytes(drawn.permute(1, 2, 0).numpy())) for drawn in draws]
    names = list(columns)
    bands = [
        labelled_grid(list(zip(*(columns[name] for name in part))), part, ["epoch 0", "epoch 1"], cell=192)
        for part in (names[:7], names[7:])
    ]
    return Image.fromarray(np.concatenate([np.array(band) for band in bands]))


@dataclass
class Options:
    image: str = option("", "the picture; may stand first, without --image", path="read")
    output: str = option("conditions.png", "the sheet to write", path="file")
    resolution: int = option(512, "the picture is scaled and cut to a square of this side, as in training", COUNT)
    seed: int = option(0, "another seed draws other thresholds, widths and masks", SEED)


def main(options: Options) -> None:
    if not options.image:
        raise InputError("no picture given; name one: python -m diffusers_ext.conditions.catalogue photo.jpg")
    try:
        picture = np.array(cover(load(Path(options.image)), options.resolution))
    except OSError as error:
        raise InputError(f"{options.image}: cannot be read ({error})") from None
    contact_sheet(picture, options.seed).save(options.output)
    print(f"{len(CONDITIONS)} conditions of {options.image} in {options.output}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--image")
    run(main, Options)
