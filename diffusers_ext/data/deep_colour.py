"""Colour of more than 8 bits a channel, of which Pillow keeps 8: read by OpenCV, or tifffile, with every level.

Grey pictures of 16 bits are none of this: Pillow keeps their levels.
"""

from io import BytesIO

import numpy as np
from PIL import Image

BITS_PER_SAMPLE, PLANAR = 258, 284  # TIFF's tags
SIZ = b"\xff\x4f\xff\x51"  # JPEG 2000's codestream starts so
FIRST_DEPTH = 4 + 2 + 2 + 8 * 4 + 2  # where the bits of its first channel stand, after the start

TURNS = {  # what EXIF's orientations ask for, of (H, W, C)
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: values[::-1].swapaxes(0, 1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: values[:, ::-1].swapaxes(0, 1),
}


def top_level(opened: Image.Image, data: bytes) -> int | None:
    """Return the highest level of a channel of a picture that is opened but not loaded; None if Pillow keeps them all."""
    if opened.mode not in ("RGB", "RGBA", "LA", "RGBX"):
        return None
    tiles = getattr(opened, "tile", [])
    arguments = tuple(tiles[0])[3] if tiles else ()  # how Pillow decodes it: a mode of the file, among others
    if opened.format == "PNG":
        return 65535 if ";16" in str(arguments) else None
    if opened.format == "TIFF":
        bits = opened.tag_v2.get(BITS_PER_SAMPLE, (8,))  # type: ignore[attr-defined]
        return 65535 if 16 in (bits if isinstance(bits, tuple) else (bits,)) else None
    if opened.format == "PPM":
        level = next((value for value in tuple(arguments) if isinstance(value, int)), 255)
        return level if level > 255 and opened.mode == "RGB" else None
    if opened.format == "JPEG2000" and (start := data.find(SIZ)) >= 0:
        depth = (data[start + FIRST_DEPTH : start + FIRST_DEPTH + 1] or b"\x07")[0] % 128 + 1
        return 2**depth - 1 if 8 < depth <= 16 else None
    return None


def deep_colour(opened: Image.Image, data: bytes, top: int, orientation: int) -> np.ndarray:
    """Return a picture's colours, turned and over white: (H, W, 3) float32 in [0, 1]; ValueError if they cannot be read.

    data: the picture's file. top: what `top_level` says. Pillow decodes it first, as OpenCV passes over what is cut short.
    """
    planar = is_planar(opened)
    as_they_lie = planar or opened.format != "TIFF"  # OpenCV turns TIFF itself
    opened.load()
    values = _planar(data) if planar else _interleaved(data)
    if as_they_lie:
        values = TURNS.get(orientation, np.asarray)(values)
    unit = values.astype(np.float32) / np.float32(top)
    if unit.shape[2] == 4:
        unit = unit[..., :3] * unit[..., 3:] + (1 - unit[..., 3:])
    return np.ascontiguousarray(unit[..., :3])


def is_planar(opened: Image.Image) -> bool:
    """Say whether a TIFF keeps its channels one after the other; of 16 bits, Pillow reads those wrong."""
    return opened.format == "TIFF" and opened.tag_v2.get(PLANAR) == 2  # type: ignore[attr-defined]


def _interleaved(data: bytes) -> np.ndarray:
    import cv2

    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"its 16 bits a channel cannot be read ({error.err}); convert it to a 16-bit PNG") from None
    if values is None or values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] not in (3, 4):
        raise ValueError("its 16 bits a channel cannot be read; convert it to a 16-bit PNG")
    return values[..., [2, 1, 0, *range(3, values.shape[2])]]


def _planar(data: bytes) -> np.ndarray:
    import tifffile

    try:
        values = tifffile.imread(BytesIO(data))
    except Exception as error:  # its own types, and those of its codecs
        raise ValueError(f"its 16 bits a channel cannot be read ({error}); convert it to a 16-bit PNG") from None
    return np.moveaxis(values, 0, 2)
