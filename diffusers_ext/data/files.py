"""A row's files, wherever their bytes lie, and their decoding: RGB for pictures, every level and channel for conditions.

A file is anything with `open("rb")`, `name` and a `str` that tells a person where it is: a Path, a Member of a tar
archive, a Cell of a data set.

Shapes: H, W the size after the turn that the EXIF data ask for, C channels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from ..lines import split_lines
from .deep_colour import deep_colour, is_planar, top_level
from .findings import Finding, listed
from .names import is_picture as is_picture
from .names import open_picture

MASKED = -1.0  # the mark of pixels to inpaint, in float conditions
NPY = b"\x93NUMPY"
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange width and height

Size = tuple[int, int]  # (width, height)


class File(Protocol):
    @property
    def name(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]: ...


@dataclass(frozen=True)
class Member:
    """A file inside an uncompressed tar archive: its bytes are [offset, offset + size)."""

    archive: Path
    name: str
    offset: int
    size: int

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        with open(self.archive, mode) as file:
            file.seek(self.offset)
            return BytesIO(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


@dataclass(frozen=True)
class Row:
    """One sample: its files and its captions, of which one is drawn each time; `origin` says where it was read.

    mask: white where the condition is to be marked as missing, for inpainting.

    >>> Row(Path('a.png'), ('a red circle',), None, 'metadata.jsonl, line 1').text
    'a red circle'
    """

    image: File
    texts: tuple[str, ...]
    condition: File | None
    origin: str
    mask: File | None = None

    @property
    def text(self) -> str:
        return self.texts[0]


class Rows(list[Row]):
    """Rows in the order of their source; the pictures that lay beside theirs but belong to no row; what else was found.

    faults: one for each row that cannot be used and so is not among them. `preflight.check` refuses them or leaves them
    out; who does without it calls `whole`. notes: what was decided while reading, and files that were not read.
    """

    def __init__(self, rows: Sequence[Row] = (), orphans: Sequence[File] = ()):
        super().__init__(rows)
        self.orphans = list(orphans)
        self.faults: list[Finding] = []
        self.notes: list[Finding] = []

    def whole(self) -> "Rows":
        """Return the rows; InputError lists those that cannot be used."""
        if self.faults:
            raise InputError("\n".join([f"{len(self.faults)} rows cannot be used", *listed("fault", self.faults)]))
        return self


class Columns(NamedTuple):
    """What the picture, the caption, the condition and the mask are called; None: there is none to read."""

    image: str
    caption: str
    condition: str | None
    mask: str | None = None


def captions(values: dict, column: str, origin: str) -> tuple[str, ...]:
    """Return the captions under a column, one text or a list of them; InputError if there is none."""
    texts = values.get(column)
    texts = (texts,) if isinstance(texts, str) else tuple(texts) if isinstance(texts, list) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        held = "null" if values.get(column) is None else str(values[column])[:40]
        has = f"it is {held}" if column in values else f"it has {', '.join(map(str, values)) or 'nothing'}"
        raise InputError(f"{origin}: no caption under '{column}'; {has}; write one, or see --caption_column")
    return texts


def text_captions(text: str) -> tuple[str, ...]:
    """Return the lines of a .txt that are not empty, or the empty caption."""
    return tuple(line.strip() for line in split_lines(text) if line.strip()) or ("",)


def load(file: File, at_least: int | None = None) -> Image.Image:
    """Open a picture as RGB, turned as its EXIF data say, transparency over white, 16 bits scaled to 8.

    at_least: a JPEG may come smaller, decoded at 1/2, 1/4 or 1/8 of its size, but no side below so many pixels: much
    faster where a large picture is scaled down anyway.
    """
    with file.open("rb") as stream:
        return rgb(stream, at_least)


def load_condition(file: File) -> np.ndarray:
    """Open a condition: (H, W, C) uint8, or float32 in [0, 1] with -1 as a mark.

    Pictures give three channels: 8 bits stay uint8, 16 bits, grey or colour, and floats become float32 with every level
    kept. A .npy gives the channels it has, (H, W) three equal ones. Raises ValueError for values outside the range.
    """
    with file.open("rb") as stream:
        return condition_array(stream)


def size_of(file: File) -> Size:
    """Read the width and height of a picture, as turned, from its header alone."""
    with file.open("rb") as stream, open_picture(stream) as opened:
        return turned_size(opened)


def orientation_of(file: File) -> int:
    """Read the turn that a file's EXIF data ask for, 1 to 8, from its header alone; 1, none, of an array."""
    with file.open("rb") as stream:
        if stream.read(len(NPY)) == NPY:
            return 1
        stream.seek(0)
        with open_picture(stream) as opened:
            return orientation(opened)


def orientation(opened: Image.Image) -> int:
    """Return the turn that the EXIF data ask for, 1 to 8; 1, none, where they do not say or are broken."""
    try:
        late = opened.format == "PNG" and has_late_text(opened)
        # Else Image.Image's method: a PNG's own decodes the picture in search of chunks after it.
        asked = (opened.getexif() if late else Image.Image.getexif(opened)).get(ORIENTATION, 1)
    except Exception:  # whatever their parser raises, the picture itself may be whole
        return 1
    return asked if isinstance(asked, int) and 1 <= asked <= 8 else 1


def has_late_text(opened: Image.Image) -> bool:
    """Say whether a PNG has chunks after its pixels that may ask for a turn, as exiftool writes them."""
    stream = getattr(opened, "fp", None)
    if stream is None:  # decoded already, and with it all chunks are known
        return False
    place, after = stream.tell(), False
    try:
        stream.seek(len(PNG))
        while len(head := stream.read(8)) == 8 and head[4:] != b"IEND":
            after |= head[4:] == b"IDAT"
            if after and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            stream.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return False
    finally:
        stream.seek(place)


def turned_size(opened: Image.Image) -> Size:
    """Return the width and height after the turn, of a picture that is opened but not loaded."""
    # Pillow gives a TIFF's size as turned already.
    return opened.size[::-1] if opened.format != "TIFF" and orientation(opened) >= 5 else opened.size


def rgb(stream: IO[bytes], at_least: int | None = None) -> Image.Image:
    """Decode as `load` does."""
    with open_picture(stream) as opened:
        if is_planar(opened) and (top := top_level(opened, b"")):
            stream.seek(0)
            return _eight_bits(deep_colour(opened, stream.read(), top, orientation(opened)))
        if at_least:
            opened.draft(None, (at_least, at_least))  # of other formats than JPEG it does nothing
        return _rgb(opened)


def condition_array(stream: IO[bytes]) -> np.ndarray:
    """Decode as `load_condition` does."""
    start = stream.read(len(NPY))
    stream.seek(0)
    if start == NPY:
        values = np.load(stream, allow_pickle=False)
    else:
        data = stream.read()
        with open_picture(BytesIO(data)) as opened:
            if top := top_level(opened, data):
                return deep_colour(opened, data, top, orientation(opened))
            if not is_deep(opened):
                return np.asarray(_rgb(opened))
            values = np.array(_as_turned(opened))
    values = values if values.dtype == np.uint8 else _unit(values)
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"an array {values.shape}; expected (height, width) or (height, width, channels)")
    return values


def is_deep(image: Image.Image) -> bool:
    """Say whether a picture has more than 8 bits a channel, which PIL's own conversion to RGB would clip at 255."""
    return image.mode.startswith("I") or image.mode == "F"


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _rgb(opened: Image.Image) -> Image.Image:
    if is_deep(opened):
        from ..rewards.reward_inputs import to_rgb  # not above: it needs torch

        return to_rgb(opened)
    image = _as_turned(opened)
    if has_alpha(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(unit: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8))


def _as_turned(opened: Image.Image) -> Image.Image:
    """Turn as the EXIF data say; where they are broken, leave the picture as it lies."""
    try:
        return ImageOps.exif_transpose(opened)
    except (OSError, Image.DecompressionBombError):  # of the picture itself
        raise
    except Exception:  # of the EXIF data: whatever their parser raises
        opened.load()
        return opened


def _unit(values: np.ndarray) -> np.ndarray:
    """Integers of 16 bits, or floats in [0, 1] or -1, of any byte order -> float32; ValueError for others."""
    kind, low, high = values.dtype.kind, values.min(initial=0), values.max(initial=0)
    if kind in "iu" and low >= 0 and high <= 65535:
        return values.astype(np.float32) / 65535
    if kind == "f" and ((values >= 0) & (values <= 1) | (values == MASKED)).all():
        return values.astype(np.float32)
    raise ValueError(
        f"values of {values.dtype} from {low} to {high}; scale them to floats in [0, 1], -1 for masked pixels, or to 16 bits"
    )
