"""What condition images are drawn with: edges, strokes, palettes, smooth noise. Lengths are given for a picture of 512 pixels.

A picture is (H, W, 3) uint8 RGB.
"""

import cv2
import numpy as np
from PIL import Image

FINE = 16  # gradients are taken on pictures in sixteenths of a grey level, so that a faint edge keeps its one ridge
FAINT = 16.0  # Sobel magnitude of a step of four grey levels: weaker is taken for noise in a picture of any contrast


def canny_edges(image: np.ndarray, sigma: float, low: float, high: float, percentile: float) -> np.ndarray:
    """Canny with thresholds in grey levels, lowered to the picture's own contrast: (H, W) uint8, 0 or 255."""
    dx, dy = gradients(image, sigma)
    step = 1 + min(image.shape[:2]) // 512  # every second pixel of a large picture tells its percentiles as well
    magnitude = edge_strength(dx[::step, ::step], dy[::step, ::step])
    structure = magnitude[magnitude >= min(FAINT, magnitude.max() / 4)]
    # 0.9: where all edges are equally strong the percentile is their strength, and Canny asks for more than `high`.
    high = min(high, 0.9 * np.percentile(structure, percentile))
    return cv2.Canny(dx, dy, FINE * min(low, 0.4 * high), FINE * high, L2gradient=True)


def gradients(image: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Sobel derivatives of the blurred picture, two (H, W, 3) int16 in 1/FINE grey levels: at most 4·255·16 = 16320."""
    blurred = cv2.GaussianBlur(image.astype(np.int16) * FINE, (0, 0), sigma)
    return cv2.Sobel(blurred, cv2.CV_16S, 1, 0), cv2.Sobel(blurred, cv2.CV_16S, 0, 1)


def edge_strength(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Root mean square over channels, (H, W) float32 in grey levels: colours of equal luma still have an edge."""
    dx, dy = dx.astype(np.float32), dy.astype(np.float32)
    return np.sqrt(cv2.transform(dx * dx + dy * dy, np.full((1, 3), 1 / (3 * FINE**2))))


def long_strokes(edges: np.ndarray, shortest: float) -> np.ndarray:
    """Remove connected strokes of fewer pixels than `shortest`; the longest always stays."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(edges, connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    kept = areas >= min(shortest, areas[1:].max(initial=0))
    kept[0] = False
    return np.where(kept[labels], np.uint8(255), np.uint8(0))


def shrunk(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = (max(1, round(side / max(1.0, factor))) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress. OpenCV writes BGR, and JPEG keeps less of blue and red than of green."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def quantized(image: np.ndarray, colours: int) -> Image.Image:
    """Median cut on a sample of the pixels (on all of a 512-pixel picture it takes 0.15 s), then the nearest colour."""
    step = 1 + min(image.shape[:2]) // 128
    palette = Image.fromarray(image[::step, ::step]).quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=0)
    return Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE)


def waves(height: int, width: int, draw: np.random.Generator) -> np.ndarray:
    """Smooth noise: products of up to two periods of cosines along each side, (H, W) float32."""
    halves = np.pi * np.arange(1, 5)
    rows, columns = (
        np.cos(np.arange(side)[:, None] / side * halves + draw.uniform(0, 2 * np.pi, 4)) for side in (height, width)
    )
    return (rows @ draw.standard_normal((4, 4)) @ columns.T).astype(np.float32)


def add_box(mask: np.ndarray, draw: np.random.Generator) -> None:
    size = np.array(mask.shape)
    height, width = np.maximum(1, np.rint(size * draw.uniform(0.1, 0.5, size=2)).astype(int))
    top, left = draw.integers(size - (height, width) + 1)
    mask[top : top + height, left : left + width] = 1


def add_stroke(mask: np.ndarray, draw: np.random.Generator) -> None:
    size = np.array(mask.shape[::-1])
    steps = draw.normal(0, 0.15, size=(draw.integers(4, 12), 2)).cumsum(axis=0)
    points = np.rint(np.clip(draw.uniform(size=2) + steps, 0, 1) * (size - 1)).astype(np.int32)
    cv2.polylines(mask, [points], False, 1, max(1, round(draw.uniform(15, 60) * scale_of(mask))))


def scale_of(image: np.ndarray) -> float:
    """The shorter side against 512, the size at which the lengths here are given."""
    return min(image.shape[:2]) / 512


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Floats in [0, 1], clipped, to uint8.

    >>> to_bytes(np.array([[0.0, 1.0]])).tolist()
    [[0, 255]]
    """
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def three_channels(grey: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
