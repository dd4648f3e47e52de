"""Rows of a data set: which picture, which condition, which captions. Every form gives the same rows, in a stable order.

    data/pairs                     image folder: metadata.jsonl or metadata.csv beside the pictures
    data/fill50k                   prompt.json, lines of {"source", "target", "prompt"}
    data/pairs                     folders of equal stems: images/, conditions/, masks/; captions in .txt beside the image
    pairs.jsonl .csv .parquet      a table; paths in it are relative to it
    shards/  shards/*.tar          tar archives: key.jpg, key.cond.png, key.mask.png, key.txt or key.json
    owner/name                     a data set on the Hub, or the folder its save_to_disk wrote

A row of a table is, in the image folder of `datasets`, one JSON object a line:

    {"file_name": "images/0.png", "conditioning_image_file_name": "conditions/0.png", "text": "a red circle"}

A caption may be a list of captions, of which one is drawn each time; a .txt has one caption a line. Where a mask column
is asked for, "mask_file_name" names a picture that is white where the condition is missing.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from glob import glob
from itertools import islice
from pathlib import Path

from ..errors import InputError
from .cells import read_hub, read_parquet, read_saved
from .files import Columns, File, Row, Rows, captions, is_picture, text_captions
from .files import load as load
from .preflight import check as check
from .shards import read_shards

METADATA = "metadata.jsonl"
TABLES = (METADATA, "metadata.csv", "prompt.json")  # names that make a folder a data set
FILL50K = {"image": "target", "conditioning_image": "source", "text": "prompt"}
FOLDERS = {
    "image": ("images",),
    "conditioning_image": ("conditioning_images", "conditions"),
    "mask": ("masks",),
}  # besides the column's name


def read_rows(
    source: str,
    image_column: str = "image",
    caption_column: str = "text",
    conditioning_image_column: str | None = "conditioning_image",
    limit: int | None = None,
    config: str | None = None,
    cache_dir: str | None = None,
    mask_column: str | None = None,
) -> Rows:
    """Read the rows of a folder, a file or a Hub name in any of the forms above; `limit` takes the first so many.

    In two folders the columns name the folders. config and cache_dir are of Hub data sets, whose split "train" is read.
    Raises InputError, naming file, row and column, where something is missing or cannot be told.
    """
    columns, path = Columns(image_column, caption_column, conditioning_image_column, mask_column), Path(source)
    if path.is_dir():
        return _read_folder(path, columns, limit)
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob(source))]
    if not files:
        if source.count("/") == 1 and not source.startswith((".", "/", "~")) and not path.suffix:
            return _some(read_hub(source, config, cache_dir, columns, limit), source)
        raise InputError(f"{source}: no such folder or file, nor owner/name of a data set on the Hub")
    suffixes = {file.suffix for file in files}
    if suffixes == {".tar"}:
        return _some(read_shards(files, columns, limit), source)
    if suffixes == {".parquet"}:
        return _some(read_parquet(files, columns, limit), source)
    if len(files) == 1 and suffixes <= {".jsonl", ".json", ".csv"}:
        return _read_table(path if path.is_file() else files[0], columns, limit)
    raise InputError(f"{source}: give one .jsonl or .csv, or .parquet or .tar files; not {', '.join(sorted(suffixes))}")


def read_image_folder(
    folder: str,
    image_column: str = "image",
    caption_column: str = "text",
    conditioning_image_column: str | None = "conditioning_image",
    mask_column: str | None = None,
    limit: int | None = None,
) -> Rows:
    """Read the rows of a folder with metadata.jsonl or metadata.csv; conditioning_image_column None reads none.

    A column `x` of pictures is the key `x_file_name` of the file, or `x`; `image` may also be `file_name`, as in
    `datasets`. Raises InputError, naming the file and the line, if the folder, a column or a value is missing.
    """
    if not Path(folder).is_dir():
        raise InputError(f"--train_data_dir {folder}: no such folder")
    tables = [Path(folder) / name for name in TABLES if (Path(folder) / name).is_file()]
    if not tables:
        raise InputError(
            f"{Path(folder) / METADATA}: missing; write one JSON object per picture: file_name, conditioning_image_file_name, text"
        )
    columns = Columns(image_column, caption_column, conditioning_image_column, mask_column)
    return _read_table(tables[0], columns, limit)


def _read_folder(folder: Path, columns: Columns, limit: int | None) -> Rows:
    if any((folder / name).is_file() for name in TABLES):
        return read_image_folder(str(folder), *columns, limit=limit)
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _some(read_saved(folder, columns, limit), folder)
    if shards := sorted(folder.glob("*.tar")):
        return _some(read_shards(shards, columns, limit), folder)
    return _read_two_folders(folder, columns, limit)


def _read_table(path: Path, columns: Columns, limit: int | None) -> Rows:
    """Read a .jsonl or .csv; one that makes its folder a data set names files inside it only, and all of them."""
    whole = path.name in TABLES
    lines = list(islice(records(path), limit))
    rows = _some(Rows([_row(values, path.parent, columns, origin, whole) for origin, values in lines]), path)
    if whole and limit is None:
        rows.orphans = _orphans(path.parent, (values for _, values in lines))
    return rows


def records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (origin, values) of each line of a .jsonl or .csv; InputError if it is not UTF-8 or a line is no object."""
    try:
        with open(path, encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                yield from ((f"{path}:{reader.line_num}", values) for values in reader)
            else:
                yield from (
                    (f"{path}:{n}", _object(line, f"{path}:{n}")) for n, line in enumerate(file, 1) if line.strip()
                )
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it in that encoding") from None


def _object(line: str, origin: str) -> dict:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{origin}: not valid JSON ({error.msg}); mend or remove the line") from None
    if not isinstance(values, dict):
        raise InputError(f"{origin}: expected a JSON object, got {line[:40]!r}")
    return values


def _row(values: dict, folder: Path, columns: Columns, origin: str, inside: bool) -> Row:
    if values.keys() >= set(FILL50K.values()):
        values = {**{ours: values[theirs] for ours, theirs in FILL50K.items()}, **values}
    image = named_file(values, folder, columns.image, "image", origin, inside)
    condition = columns.condition and named_file(
        values, folder, columns.condition, "conditioning_image", origin, inside
    )
    mask = columns.mask and named_file(values, folder, columns.mask, "mask", origin, inside)
    return Row(image, captions(values, columns.caption, origin), condition or None, origin, mask or None)


def named_file(values: dict, folder: Path, column: str, role: str, origin: str, inside: bool) -> Path:
    """Return the file that a row names under a column; InputError if there is none, or it leaves a folder it must not."""
    names = [f"{column}_file_name", column] + (["file_name"] if column == "image" else [])
    name = next((values[name] for name in names if values.get(name)), None)
    if not isinstance(name, str):
        wanted = "file_name" if column == "image" else names[0]
        raise InputError(
            f"{origin}: no '{wanted}'; it has {', '.join(map(str, values)) or 'nothing'}; see --{role}_column"
        )
    path = os.path.normpath(folder / name)
    if inside and os.path.relpath(path, folder).startswith(".."):
        raise InputError(f"{origin}: {name} lies outside {folder}; move it inside")
    return Path(path)


def _orphans(folder: Path, records: Iterable[dict]) -> list[File]:
    """The pictures that no value of any row names, in the folders where the named ones lie."""
    values = (value for record in records for value in record.values() if isinstance(value, str) and is_picture(value))
    named = {os.path.normpath(folder / value) for value in values}
    beside = [
        entry
        for place in {os.path.dirname(path) for path in named}
        if os.path.isdir(place)
        for entry in os.scandir(place)
    ]
    return [
        Path(each) for each in sorted(entry.path for entry in beside if is_picture(entry.name)) if each not in named
    ]


def _read_two_folders(folder: Path, columns: Columns, limit: int | None) -> Rows:
    """Pair the pictures of two folders by their path without suffix; without a .txt a caption is empty."""
    images = _by_stem(_subfolder(folder, columns.image))
    conditions, masks = (
        _by_stem(_subfolder(folder, column)) if column else None for column in (columns.condition, columns.mask)
    )
    roles = [files for files in (images, conditions, masks) if files is not None]
    whole = set.intersection(*map(set, roles))
    orphans = [file for files in roles for stem, file in sorted(files.items()) if stem not in whole]
    rows = [
        Row(
            images[stem],
            _text_beside(images[stem]),
            conditions[stem] if conditions else None,
            str(images[stem]),
            masks[stem] if masks else None,
        )
        for stem in sorted(whole)[:limit]
    ]
    return _some(Rows(rows, orphans if limit is None else []), folder)


def _subfolder(folder: Path, column: str) -> Path:
    found = next((folder / name for name in (column, *FOLDERS.get(column, ())) if (folder / name).is_dir()), None)
    if found is None:
        raise InputError(
            f"{folder / METADATA}: missing, and {folder} has no folder '{column}' to pair by name, no prompt.json, no *.tar; "
            f"write one JSON object per picture: file_name, conditioning_image_file_name, text"
        )
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if is_picture(path.name):
            stem = str(path.relative_to(folder).with_suffix(""))
            if stem in found:
                raise InputError(f"{path}: {found[stem]} has the same name but for its suffix; remove one of them")
            found[stem] = path
    return found


def _text_beside(image: Path) -> tuple[str, ...]:
    path = image.with_suffix(".txt")
    return text_captions(path.read_text(encoding="utf-8")) if path.is_file() else ("",)


def _some(rows: Rows, source: str | Path) -> Rows:
    if not rows:
        raise InputError(f"{source}: holds no rows; nothing to train on")
    return rows
