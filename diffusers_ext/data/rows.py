"""Rows of a data set: which picture, which condition, which caption; and the check of them all before training.

The format is the image folder of `datasets`: pictures in a folder with a metadata.jsonl, one JSON object a line:

    {"file_name": "images/0.png", "conditioning_image_file_name": "conditions/0.png", "text": "a red circle"}
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import InputError

METADATA = "metadata.jsonl"
SHOWN = 10  # faults listed before the rest is only counted


@dataclass(frozen=True)
class Row:
    """One sample; `origin` says where it was read, for messages."""

    image: Path
    text: str
    condition: Path | None
    origin: str


def read_image_folder(
    folder: str,
    image_column: str = "image",
    caption_column: str = "text",
    conditioning_image_column: str | None = "conditioning_image",
    limit: int | None = None,
) -> list[Row]:
    """Read the rows of an image folder; conditioning_image_column None reads none.

    A column `x` of pictures is the key `x_file_name` of the file, or `x`; `image` may also be `file_name`, as in
    `datasets`. Raises InputError, naming the file and the line, if the folder, a column or a value is missing.
    """
    metadata = Path(folder) / METADATA
    if not Path(folder).is_dir():
        raise InputError(f"--train_data_dir {folder}: no such folder")
    if not metadata.is_file():
        raise InputError(
            f"{metadata}: missing; write one JSON object per picture: file_name, conditioning_image_file_name, text"
        )
    rows = []
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        origin = f"{metadata}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{origin}: not valid JSON ({error.msg}); mend or remove the line") from None
        if not isinstance(values, dict):
            raise InputError(f"{origin}: expected a JSON object, got {line[:40]!r}")
        image = _file(folder, values, image_column, origin)
        condition = _file(folder, values, conditioning_image_column, origin) if conditioning_image_column else None
        text = values.get(caption_column)
        if not isinstance(text, str):
            raise InputError(
                f"{origin}: no caption under '{caption_column}'; it has {_names(values)}; see --caption_column"
            )
        rows.append(Row(image, text, condition, origin))
        if limit is not None and len(rows) == limit:
            break
    if not rows:
        raise InputError(f"{metadata}: holds no rows; nothing to train on")
    return rows


def check(rows: Sequence[Row], workers: int = 4) -> None:
    """Decode every picture and compare each condition's shape with its image's; InputError lists all faults by file."""
    with ThreadPoolExecutor(workers) as pool:
        faults = [fault for found in pool.map(_faults, rows) for fault in found]
    if faults:
        shown = "\n  ".join(faults[:SHOWN])
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(
            f"{len(faults)} faults in {len(rows)} rows; mend the files or remove their lines:\n  {shown}{more}"
        )


def load(path: Path) -> Image.Image:
    """Open a picture as RGB, turned as its EXIF data say, transparency over white."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")


def _faults(row: Row) -> list[str]:
    sizes, faults = [], []
    for path in filter(None, (row.image, row.condition)):
        try:
            sizes.append(load(path).size)
        except FileNotFoundError:
            faults.append(f"{path}: missing (named in {row.origin})")
        except Exception as error:  # whatever a decoder raises, the file is the fault
            faults.append(f"{path}: cannot be read ({error}) (named in {row.origin})")
    if len(sizes) == 2 and not _same_shape(*sizes):
        faults.append(
            f"{row.condition}: {sizes[1][0]}x{sizes[1][1]} does not have the shape of its image, {sizes[0][0]}x{sizes[0][1]} ({row.origin})"
        )
    return faults


def _same_shape(image: tuple[int, int], condition: tuple[int, int]) -> bool:
    """Equal sizes, or equal but for scale to within a pixel."""
    scale = condition[0] / image[0]
    return abs(image[1] * scale - condition[1]) <= max(1.0, scale)


def _file(folder: str, values: dict, column: str, origin: str) -> Path:
    names = [f"{column}_file_name", column] + (["file_name"] if column == "image" else [])
    name = next((values[name] for name in names if name in values), None)
    if not isinstance(name, str):
        wanted = "file_name" if column == "image" else names[0]
        raise InputError(
            f"{origin}: no '{wanted}'; it has {_names(values)}; see --{'image' if column == 'image' else 'conditioning_image'}_column"
        )
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise InputError(f"{origin}: {name} lies outside {folder}; move it inside")
    return path


def _names(values: dict) -> str:
    return ", ".join(values) or "nothing"
