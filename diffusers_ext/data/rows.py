"""Rows of a data set: which picture, which condition, which captions. Every form gives the same rows, in a stable order.

    data/pairs                     image folder: metadata.jsonl, .csv, .tsv, .json or .parquet beside the pictures
    data/fill50k                   prompt.json, lines of {"source", "target", "prompt"}
    data/pairs                     folders of equal stems: images/, conditions/, masks/; captions beside the images
    pairs.jsonl .json .csv .tsv    a table; paths in it are relative to it; a .json in several forms (see `json_forms`)
    pairs.parquet  pairs.arrow     a table, or the pictures themselves
    shards/  shards/*.tar          tar archives: key.jpg, key.cond.png, key.mask.png, key.txt, .caption or .json
    pairs.zip                      a zip of an image folder, or of folders of equal stems
    snapshot/                      a downloaded repository of the Hub: data/train-*.parquet
    owner/name                     a data set on the Hub, or the folder its save_to_disk wrote

A row of a table is, in the image folder of `datasets`, one JSON object a line:

    {"file_name": "images/0.png", "conditioning_image_file_name": "conditions/0.png", "text": "a red circle"}

A caption may be a list of captions, of which one is drawn each time; captions beside pictures: see `sidecars`. Where a
mask column is asked for, "mask_file_name" names a picture that is white where the condition is missing. Of several
splits, in folders or in names of files, train is read (see `snapshots`), and a note names the others. Hidden files and
what programs leave in folders (`names.HELPERS`) are never data.
"""

import os
from glob import glob
from pathlib import Path

from ..errors import InputError
from .cells import read_arrow, read_hub, read_parquet, read_saved, table_records
from .files import Columns, Rows
from .files import load as load
from .findings import Finding, listed
from .folders import (
    METADATA,
    PARQUET_TABLE,
    WRITE_TABLE,
    folder_files,
    is_about,
    pair_folders,
    read_table,
    read_zip,
    table_rows,
)
from .folders import TABLES as TABLES
from .preflight import check as check
from .shards import INDEX, read_shards
from .sidecars import unused_notes
from .snapshots import Chosen, files_below, training_files, training_folder
from .tables import SUFFIXES, find_table
from .tables import named_file as named_file
from .tables import records as records


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
    Rows that cannot be used are the faults of what is returned: give it to `check`, which refuses them or leaves them
    out. Raises InputError, naming file, row and column, where the source cannot be read or no row of it can be used.
    """
    columns, path = Columns(image_column, caption_column, conditioning_image_column, mask_column), Path(source)
    if os.path.isdir(path):
        return _some(_read_folder(path, columns, limit, config), source)
    files = [path] if os.path.isfile(path) else matching_files(source)
    if files:
        return _some(_read_files(source, files, columns, limit), source)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")) and not path.suffix and "\0" not in source:
        return _some(read_hub(source, config, cache_dir, columns, limit), source)
    raise InputError(f"{source}: no such folder or file, nor owner/name of a data set on the Hub")


def matching_files(pattern: str) -> list[Path]:
    """Return the files that * and ? of a pattern match, in order; brackets may belong to a name."""
    try:
        return [
            Path(name) for name in sorted(glob(pattern) or glob(pattern.replace("[", "[[]"))) if os.path.isfile(name)
        ]
    except (ValueError, OSError):  # no name of a file
        return []


def parquet_files(source: str, config: str | None = None) -> Chosen:
    """Return the parquet files of a source to be streamed, none for a Hub name; InputError for other local files."""
    path = Path(source)
    files = [path] if os.path.isfile(path) else matching_files(source)
    found = files_below(path, ".parquet") if os.path.isdir(path) else files
    if (files or os.path.isdir(path)) and {file.suffix.lower() for file in found} != {".parquet"}:
        raise InputError(f"{source}: only .parquet files and Hub data sets can be streamed; leave out --streaming")
    return training_files(path, found, config) if os.path.isdir(path) else Chosen(found, [])


def read_image_folder(
    folder: str,
    image_column: str = "image",
    caption_column: str = "text",
    conditioning_image_column: str | None = "conditioning_image",
    mask_column: str | None = None,
    limit: int | None = None,
) -> Rows:
    """Read the rows of a folder with metadata.jsonl or another of TABLES; conditioning_image_column None reads none.

    A column `x` of pictures is the key `x_file_name` of the file, or `x`; `image` may also be `file_name`, as in
    `datasets`. Raises InputError, naming the file and the line, if the folder or all of its rows cannot be used.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--train_data_dir {folder}: no such folder")
    columns = Columns(image_column, caption_column, conditioning_image_column, mask_column)
    rows = _read_metadata(Path(folder), columns, limit)
    if rows is None:
        raise InputError(f"{Path(folder) / METADATA}: missing; {WRITE_TABLE}")
    return _some(rows, folder)


def _read_metadata(folder: Path, columns: Columns, limit: int | None) -> Rows | None:
    """The rows of the table that makes a folder a data set; None where it has none."""
    if table := find_table(folder, TABLES):
        return read_table(table, columns, limit)
    table = find_table(folder, (PARQUET_TABLE,))
    return table_rows(table, table_records(table), columns, limit) if table else None


def _read_files(source: str, files: list[Path], columns: Columns, limit: int | None) -> Rows:
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".tar"}:
        return read_shards(files, columns, limit)
    if suffixes == {".parquet"}:
        return read_parquet(files, columns, limit)
    if suffixes == {".arrow"}:
        return read_arrow(files, columns, limit)
    if len(files) == 1 and suffixes == {".zip"}:
        return read_zip(files[0], columns, limit)
    if len(files) == 1 and suffixes <= set(SUFFIXES):
        return read_table(files[0], columns, limit)
    raise InputError(
        f"{source}: give one .jsonl or .csv, or .parquet or .tar files; not {', '.join(sorted(suffixes))}; "
        "unpack or convert it"
    )


def _read_folder(folder: Path, columns: Columns, limit: int | None, config: str | None) -> Rows:
    """Read a folder by what it holds: the first of the forms above that it has."""
    rows = _read_metadata(folder, columns, limit)
    if rows is not None:
        return rows
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return read_saved(folder, columns, limit)
    if shards := sorted(path for path in folder.glob("*") if path.suffix.lower() == ".tar"):
        return _of_train(folder, shards, columns, limit, config)
    if not any((folder / name).is_dir() for name in ("image", "images", columns.image)):
        if tables := files_below(folder, ".parquet", ".arrow"):
            return _of_train(folder, tables, columns, limit, config)
        if split := training_folder(folder):
            rows = _read_folder(split[0], columns, limit, config)
            rows.notes += split[1]
            return rows
        if len(archives := sorted(folder.glob("*.zip"))) == 1:
            rows = read_zip(archives[0], columns, limit)
            rows.notes += _beside(folder, archives, rows) if limit is None else []
            return rows
    return pair_folders(folder_files(folder), str(folder), columns, limit)


def _of_train(folder: Path, files: list[Path], columns: Columns, limit: int | None, config: str | None) -> Rows:
    chosen = training_files(folder, files, config)
    rows = _read_files(str(folder), chosen.files, columns, limit)
    rows.notes += chosen.notes + (_beside(folder, files, rows) if limit is None else [])
    return rows


def _beside(folder: Path, files: list[Path], rows: Rows) -> list[Finding]:
    """Notes of the files of a folder that are read neither as the tables or archives that it holds nor for their rows."""
    used = {str(file) for row in rows for file in (row.image, row.condition, row.mask) if isinstance(file, Path)}
    used |= set(map(str, files)) | {f"{file}{INDEX}" for file in files}
    rest = (name for name, path in folder_files(folder).items() if str(path) not in used and not is_about(name))
    return unused_notes(str(folder), rest)


def _some(rows: Rows, source: str | Path) -> Rows:
    """Return the rows; InputError where there are none, with all that was found instead."""
    if rows:
        return rows
    head = f"no row of {len(rows.faults)} can be used" if rows.faults else "holds no rows; nothing to train on"
    lone = [
        Finding("picture of no row", f"{file}: the picture, condition or mask to go with it is missing")
        for file in rows.orphans
    ]
    raise InputError(
        "\n".join([f"{source}: {head}", *listed("fault", [*rows.faults, *lone]), *listed("note", rows.notes)])
    )
