"""Tables of labelled pictures: .jsonl, .csv and .tsv, with commas, semicolons or tabs, .json lists and .parquet."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..lines import parse_json, read_text
from .cells import Cell, open_table
from .files import File
from .names import is_picture
from .rows import named_file, records
from .samples import Sample
from .splits import split_of

SUFFIXES = (".jsonl", ".csv", ".tsv", ".json", ".parquet")
SHOWN = 5  # faults of a table that a message lists
IMAGE_COLUMNS = ("image_file_name", "image", "file_name")  # what the picture may be called without a word


@dataclass(frozen=True)
class LabelColumns:
    """What a table's columns are called."""

    label: str = "label"
    domain: str = "domain"
    split: str = "split"
    image: str = "image"


def is_table(name: str) -> bool:
    """Say whether a file is a table, by its ending."""
    return Path(name).suffix.lower() in SUFFIXES


def read_table(
    path: Path, columns: LabelColumns, domain: str, split: str | None = None, inside: bool = False
) -> list[Sample]:
    """Return the samples of a table, in its order; domain and split are of rows that name none.

    inside: no file may lie outside the table's folder. Raises InputError with the rows that cannot be used.
    """
    samples: list[Sample] = []
    faults: dict[str, list[str]] = {}  # the rows of each reason
    for origin, values in table_records(path):
        try:
            samples.append(_sample(origin, values, path, columns, domain, split, inside))
        except InputError as error:
            faults.setdefault(str(error).removeprefix(f"{origin}: "), []).append(origin)
    if faults:
        told = [f"{rows[0]}: {reason}{_more(len(rows) - 1)}" for reason, rows in faults.items()]
        raise InputError("\n".join(told[:SHOWN]) + (f"\nand {len(told) - SHOWN} more" if len(told) > SHOWN else ""))
    return samples


def table_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (origin, values) of each row of a table; InputError if it cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _of_parquet(path)
        elif suffix in (".csv", ".tsv"):
            yield from _separated(path)
        elif suffix == ".json" and read_text(path).lstrip()[:1] == "[":
            yield from _listed(path)
        elif suffix in (".json", ".jsonl"):
            yield from records(path)
        else:
            raise InputError(f"{path}: no table; give {', '.join(SUFFIXES)}, or a folder")
    except (OSError, UnicodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def names_pictures(path: Path) -> bool:
    """Say whether the first row of a table names a picture that is there."""
    try:
        _, values = next(table_records(path))
        texts = [value for value in values.values() if isinstance(value, str) and is_picture(value)]
        return any((path.parent / text).is_file() for text in texts)
    except (InputError, StopIteration, OSError, ValueError):
        return False


def _sample(
    origin: str,
    values: dict[str, Any],
    path: Path,
    columns: LabelColumns,
    domain: str,
    split: str | None,
    inside: bool,
) -> Sample:
    file = _file(origin, values, path.parent, columns.image, inside)
    label = _name(values, columns.label, origin)
    if label is None:
        raise InputError(
            f"{origin}: no label under '{columns.label}'; it has {_held(values)}; rename the column, or name it with label_column"
        )
    named = _name(values, columns.split, origin)
    own = _name(values, columns.domain, origin) or domain
    return Sample(file, label, own, (split_of(named) or named) if named else split, origin)


def _more(rows: int) -> str:
    return f" ({rows} more such rows)" if rows else ""


def _file(origin: str, values: dict[str, Any], folder: Path, column: str, inside: bool) -> File:
    names = IMAGE_COLUMNS if column == "image" else (f"{column}_file_name", column)
    value = next((values[name] for name in names if values.get(name)), None)
    if isinstance(value, Cell):
        return value
    if not isinstance(value, str):
        wanted = "file_name" if column == "image" else column
        raise InputError(
            f"{origin}: no '{wanted}'; it has {_held(values)}; rename the picture's column, or name it with image_column"
        )
    if "\\" in value and not os.path.isfile(folder / value):
        value = value.replace("\\", "/")  # as Windows writes paths
    return named_file({column: value}, folder, column, "image", origin, inside)


def _held(values: dict[str, Any]) -> str:
    return ", ".join(map(str, values)) or "nothing"


def _name(values: dict[str, Any], column: str, origin: str) -> str | None:
    """The text or whole number under a column; None where it is missing or empty."""
    value = values.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{origin}: '{column}' must be a name or a whole number, got {value!r:.60}; write a name")
    return str(value).strip() or None


def _separated(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Rows of separated values: the separator is the one of tab, semicolon and comma that the first line has most of."""
    text = read_text(path)
    first = text.split("\n", 1)[0]
    separator = max(("\t", ";", ",") if path.suffix.lower() == ".tsv" else (",", ";", "\t"), key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for values in reader:
            yield f"{path}:{reader.line_num}", {str(name).strip(): value for name, value in values.items() if name}
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}; fix or remove the line") from None


def _listed(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Rows of a JSON list of objects, as pandas writes with orient="records"."""
    for place, values in enumerate(parse_json(read_text(path), path)):
        if not isinstance(values, dict):
            raise InputError(f"{path}[{place}]: expected a JSON object, got {values!r:.40}")
        yield f"{path}[{place}]", values


def _of_parquet(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Rows of a parquet file: pictures inside it as cells, numbers of classes as the names that its features give them."""
    try:
        data = open_table(path)
        for name, feature in data.features.items():
            if type(feature).__name__ == "Image":
                data = data.cast_column(name, type(feature)(decode=False))
    except InputError:
        raise
    except Exception as error:  # of pyarrow and datasets, which have many
        raise InputError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]})") from None
    columns = {name: data.select_columns([name]) for name in data.column_names}  # a cell reads its own column only
    names = {name: getattr(feature, "names", None) for name, feature in data.features.items()}
    for place, values in enumerate(data):
        row = {name: _class(names[name], value) for name, value in values.items()}
        cells = {name: Cell(columns[name], place, name, str(path)) for name, value in row.items() if _is_cell(value)}
        yield f"{path}[{place}]", row | cells


def _is_cell(value: Any) -> bool:
    """Say whether a value is a picture itself: its bytes, or those in an object as `datasets` keeps them."""
    return isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value)


def _class(names: list[str] | None, value: Any) -> Any:
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None
