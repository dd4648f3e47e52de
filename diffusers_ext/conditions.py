"""Condition images without learned weights, computed from the target picture after the joint crop.

A condition is `condition(image, draw) -> condition image`: (H, W, 3) uint8 RGB in; (H, W, 3) uint8 out, or
(H, W, C) float32 in [0, 1] with -1 as a mark where uint8 cannot hold the values. `draw` is the sample's own generator,
`randomness.generator(seed, "condition", epoch, index)`: thresholds, widths and masks vary from epoch to epoch, and the
same key gives the same condition. Maps are white on black. Lengths in pixels scale with the picture's shorter side.

    python -m diffusers_ext.conditions photo.jpg --output sheet.png

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
import torch
from PIL import Image
from torch.nn import functional as F

from . import randomness
from .data.pairs import cover
from .data.rows import load
from .errors import InputError
from .options import option

Condition = Callable[[np.ndarray, np.random.Generator], np.ndarray]

FINE = 16  # gradients are taken on pictures in sixteenths of a grey level, so that a faint edge keeps its one ridge
FAINT = 16.0  # Sobel magnitude of a step of four grey levels: weaker is taken for noise in a picture of any contrast
MASKED = -1.0  # the mark of pixels to inpaint, as ControlNet 1.1 inpaint is fed


def canny(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Edges one pixel wide, never an empty map where the picture has any structure; a blank one gives black."""
    low = draw.uniform(20, 120)
    high = low + 80 + draw.uniform(0, 100)
    return _rgb(_edges(image, draw.uniform(0.6, 1.2), low, high, draw.uniform(70, 95)))


def scribble(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The long contours of the blurred picture in a broad pen; a blank picture gives black."""
    scale = _scale(image)
    edges = _edges(image, max(1.5, draw.uniform(2, 5) * scale), 60, 200, draw.uniform(75, 95))
    strokes = _long_strokes(edges, draw.uniform(30, 80) * scale)
    width = 2 * round(draw.uniform(1, 3) * scale) + 1
    return _rgb(cv2.dilate(strokes, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))))


def lineart(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Ink lines by the extended difference of Gaussians, drawn white on black; flat areas of any colour are black.

    D = G(σ) - τ·G(1.6σ);  paper = 1 where D >= ε, else 1 + tanh(φ·(D - ε))  (Winnemöller et al. 2012, XDoG, eq. 5),
    for each channel; the ink is the strongest channel's.
    """
    sigma, tau = max(0.8, draw.uniform(1, 2) * _scale(image)), draw.uniform(0.98, 0.995)
    epsilon, phi = draw.uniform(-0.01, -0.003), 200
    colours = image.astype(np.float32) / 255
    difference = cv2.GaussianBlur(colours, (0, 0), sigma) - tau * cv2.GaussianBlur(colours, (0, 0), 1.6 * sigma)
    strongest = reduce(cv2.min, cv2.split(difference))
    return _rgb(_bytes(-np.tanh(phi * np.minimum(strongest - epsilon, 0))))


def softedge(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Sobel magnitude of the blurred picture, its strongest hundredth white; a blank picture gives black."""
    magnitude = _magnitude(*_gradients(image, max(0.8, draw.uniform(1, 2.5) * _scale(image))))
    # Half the maximum: in a drawing of few lines the strongest hundredth reaches into the paper.
    return _rgb(_bytes(magnitude / max(np.percentile(magnitude, 99), magnitude.max() / 2, FAINT)))


def lines(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Straight segments of the grey picture (von Gioi et al. 2010, LSD), the short ones left out."""
    canvas = np.zeros(image.shape[:2], np.uint8)
    found = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD).detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    shortest, width = draw.uniform(10, 30) * _scale(image), max(1, round(draw.uniform(1, 2.4) * _scale(image)))
    if found is not None:
        ends = found.reshape(-1, 2, 2)
        kept = ends[np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) >= shortest]
        cv2.polylines(canvas, list(np.rint(kept * 16).astype(np.int32)), False, 255, width, cv2.LINE_AA, shift=4)
    return _rgb(canvas)


def tile(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture as a 2 to 8 times smaller copy would show it, half of the copies JPEG-compressed."""
    factor = draw.uniform(2, 8)
    small = _shrink(image, factor)
    if draw.random() < 0.5:
        small = _jpeg(small, int(draw.integers(40, 96)))
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def palette_grid(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Mean colours of a grid of cells, 4 to 16 along the shorter side (T2I-Adapter's colour condition has 8)."""
    cells = _shrink(image, min(image.shape[:2]) / int(draw.integers(4, 17)))
    return cv2.resize(cells, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def palette_colours(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture in 4 to 16 colours of its own, by median cut."""
    return np.array(_quantize(image, int(draw.integers(4, 17))).convert("RGB"))


def blur(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture under a Gaussian of σ 2 to 16 pixels at 512, small and large blurs equally often."""
    sigma = math.exp(draw.uniform(math.log(2), math.log(16))) * _scale(image)
    return cv2.GaussianBlur(image, (0, 0), max(0.5, sigma))


def grayscale(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Luma of BT.601; nothing is drawn."""
    return _rgb(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def identity(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture itself; nothing is drawn. With masks of its own, a data set trains an inpainting ControlNet by it."""
    return image.copy()


def inpaint(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The picture as float32 in [0, 1] with one to four boxes or brush strokes set to -1."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for _ in range(draw.integers(1, 5)):
        (_add_box if draw.random() < 0.5 else _add_stroke)(mask, draw)
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
    x, y = (_waves(height, width, draw) for _ in range(2))
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
    """Return a condition of CONDITIONS, or import "module:callable"; InputError says what is wrong and what there is."""
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


def as_tensor(condition: np.ndarray) -> torch.Tensor:
    """(H, W, C) uint8, or float32 in [0, 1] with -1 as a mark -> (C, H, W) float32; InputError for anything else."""
    if not isinstance(condition, np.ndarray) or condition.ndim != 3 or condition.dtype not in (np.uint8, np.float32):
        given = (
            f"{condition.dtype} {condition.shape}" if isinstance(condition, np.ndarray) else type(condition).__name__
        )
        raise InputError(f"a condition must return an array (H, W, C), uint8 or float32, not {given}")
    # ascontiguousarray: torch refuses the negative strides of a flipped picture.
    tensor = torch.from_numpy(np.ascontiguousarray(condition.transpose(2, 0, 1)))
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not ((tensor >= 0) & (tensor <= 1) | (tensor == MASKED)).all():
        raise InputError("a float32 condition must lie in [0, 1], with -1 for masked pixels")
    return tensor


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


def sobel_magnitude(images: torch.Tensor, epsilon: float = 1e-3) -> torch.Tensor:
    """Differentiable edge strength: (B, C, H, W) in [0, 1] -> (B, 1, H, W); a straight step from black to white gives 1.

    m = sqrt(mean over channels of gx² + gy², + ε²) - ε: zero, with zero gradient, where the picture is flat.
    """
    batch, channels, height, width = images.shape
    sobel = (
        torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=images.dtype, device=images.device)
        / 4
    )
    padded = F.pad(images.reshape(-1, 1, height, width), (1, 1, 1, 1), mode="replicate")
    gradients = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])
    energy = gradients.square().sum(1).reshape(batch, channels, height, width).mean(1, keepdim=True)
    return (energy + epsilon**2).sqrt() - epsilon


def canny_magnitude(
    images: torch.Tensor, sigma: float = 1.0, threshold: float = 0.1, softness: float = 0.02
) -> torch.Tensor:
    """Differentiable stand-in for Canny: (B, C, H, W) in [0, 1] -> (B, 1, H, W), edges not thinned.

    m·sigmoid((m - threshold) / softness) with m the Sobel magnitude of the blurred picture: what lies below the
    threshold fades, what lies above keeps its strength and so its gradient.
    """
    magnitude = sobel_magnitude(_gaussian_blur(images, sigma))
    return magnitude * torch.sigmoid((magnitude - threshold) / softness)


def contact_sheet(picture: np.ndarray, seed: int) -> Image.Image:
    """Draw every condition of one picture, (H, W, 3) uint8, as epochs 0 and 1 would see it."""
    from .grids import labelled_grid  # not above: data workers need no matplotlib

    # A picture has no labels; its quantised colours show how a label map is coloured.
    sources = {name: np.array(_quantize(picture, 12)) if name == "segmentation" else picture for name in CONDITIONS}
    columns = {"picture": [Image.fromarray(picture)] * 2}
    del sources["identity"]  # the first column
    for name, source in sources.items():
        draws = [
            as_tensor(CONDITIONS[name](source, randomness.generator(seed, "condition", epoch, 0))) for epoch in (0, 1)
        ]
        columns[name] = [Image.fromarray(_bytes(drawn.permute(1, 2, 0).numpy())) for drawn in draws]
    names = list(columns)
    bands = [
        labelled_grid(list(zip(*(columns[name] for name in part))), part, ["epoch 0", "epoch 1"], cell=192)
        for part in (names[:7], names[7:])
    ]
    return Image.fromarray(np.concatenate([np.array(band) for band in bands]))


def _edges(image: np.ndarray, sigma: float, low: float, high: float, percentile: float) -> np.ndarray:
    """Canny with thresholds in grey levels, lowered to the picture's own contrast: (H, W) uint8, 0 or 255."""
    dx, dy = _gradients(image, sigma)
    step = 1 + min(image.shape[:2]) // 512  # every second pixel of a large picture tells its percentiles as well
    magnitude = _magnitude(dx[::step, ::step], dy[::step, ::step])
    structure = magnitude[magnitude >= min(FAINT, magnitude.max() / 4)]
    # 0.9: where all edges are equally strong the percentile is their strength, and Canny asks for more than `high`.
    high = min(high, 0.9 * np.percentile(structure, percentile))
    return cv2.Canny(dx, dy, FINE * min(low, 0.4 * high), FINE * high, L2gradient=True)


def _gradients(image: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Sobel derivatives of the blurred picture, two (H, W, 3) int16 in 1/FINE grey levels: at most 4·255·16 = 16320."""
    blurred = cv2.GaussianBlur(image.astype(np.int16) * FINE, (0, 0), sigma)
    return cv2.Sobel(blurred, cv2.CV_16S, 1, 0), cv2.Sobel(blurred, cv2.CV_16S, 0, 1)


def _magnitude(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Root mean square over channels, (H, W) float32 in grey levels: colours of equal luma still have an edge."""
    dx, dy = dx.astype(np.float32), dy.astype(np.float32)
    return np.sqrt(cv2.transform(dx * dx + dy * dy, np.full((1, 3), 1 / (3 * FINE**2))))


def _long_strokes(edges: np.ndarray, shortest: float) -> np.ndarray:
    """Remove connected strokes of fewer pixels than `shortest`; the longest always stays."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    kept = areas >= min(shortest, areas[1:].max(initial=0))
    kept[0] = False
    return np.where(kept[labels], np.uint8(255), np.uint8(0))


def _shrink(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = (max(1, round(side / max(1.0, factor))) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress. OpenCV writes BGR, and JPEG keeps less of blue and red than of green."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _quantize(image: np.ndarray, colours: int) -> Image.Image:
    """Median cut on a sample of the pixels (on all of a 512-pixel picture it takes 0.15 s), then the nearest colour."""
    step = 1 + min(image.shape[:2]) // 128
    palette = Image.fromarray(image[::step, ::step]).quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=0)
    return Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE)


def _waves(height: int, width: int, draw: np.random.Generator) -> np.ndarray:
    """Smooth noise: products of up to two periods of cosines along each side, (H, W) float32."""
    halves = np.pi * np.arange(1, 5)
    rows, columns = (
        np.cos(np.arange(side)[:, None] / side * halves + draw.uniform(0, 2 * np.pi, 4)) for side in (height, width)
    )
    return (rows @ draw.standard_normal((4, 4)) @ columns.T).astype(np.float32)


def _add_box(mask: np.ndarray, draw: np.random.Generator) -> None:
    size = np.array(mask.shape)
    height, width = np.maximum(1, np.rint(size * draw.uniform(0.1, 0.5, size=2)).astype(int))
    top, left = draw.integers(size - (height, width) + 1)
    mask[top : top + height, left : left + width] = 1


def _add_stroke(mask: np.ndarray, draw: np.random.Generator) -> None:
    size = np.array(mask.shape[::-1])
    steps = draw.normal(0, 0.15, size=(draw.integers(4, 12), 2)).cumsum(axis=0)
    points = np.rint(np.clip(draw.uniform(size=2) + steps, 0, 1) * (size - 1)).astype(np.int32)
    cv2.polylines(mask, [points], False, 1, max(1, round(draw.uniform(15, 60) * _scale(mask))))


def _gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian cut at 3σ, borders repeated: (B, C, H, W) -> (B, C, H, W)."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    padded = F.pad(images.reshape(-1, 1, *images.shape[2:]), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None]).reshape(images.shape)


def _scale(image: np.ndarray) -> float:
    """The shorter side against 512, the size at which the lengths here are given."""
    return min(image.shape[:2]) / 512


def _bytes(values: np.ndarray) -> np.ndarray:
    """Floats in [0, 1], clipped, to uint8."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


@dataclass
class Options:
    image: str = option("", "the picture; may stand first, without --image")
    output: str = option("conditions.png", "the sheet to write")
    resolution: int = option(512, "the picture is scaled and cut to a square of this side, as in training")
    seed: int = option(0, "another seed draws other thresholds, widths and masks")


def main(options: Options) -> None:
    if not options.image:
        raise InputError("no picture given; name one: python -m diffusers_ext.conditions photo.jpg")
    try:
        picture = np.array(cover(load(Path(options.image)), options.resolution))
    except OSError as error:
        raise InputError(f"{options.image}: cannot be read ({error})") from None
    contact_sheet(picture, options.seed).save(options.output)
    print(f"{len(CONDITIONS)} conditions of {options.image} in {options.output}")


if __name__ == "__main__":
    from .options import run

    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--image")
    run(main, Options)
