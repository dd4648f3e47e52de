"""Tables: .jsonl, .json (see `json_forms`), .csv and .tsv, and the files that their rows name.

A bad row is handed on with what is wrong with it, so that all of them can be named at once, or left out.
"""

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..lines import parse_json, read_text, split_lines, unique_keys
from .json_forms import rows_in

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SEPARATORS = (",", ";", "\t", "|")
# Lines before the names of columns: empty ones, and the one by which Excel is told the separator.
HEADING = re.compile(r'\A(?:(?:"?sep=.?"?)?[ \t]*(?:\r\n|\n|\r))+', re.IGNORECASE)


@dataclass(frozen=True)
class Record:
    """One row: where it was read and its values, or what is wrong with it."""

    origin: str
    values: dict[str, Any] = field(default_factory=dict)
    error: InputError | None = None


def find_table(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files that a folder has, its name in letters of any case; None where it has none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = {entry.lower(): folder / entry for entry in sorted(os.listdir(folder), reverse=True)}
    return next((found[name] for name in names if name in found and found[name].is_file()), None)


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (origin, values) of each row of a table; InputError at the first row that cannot be read."""
    for record in read_records(read_text(path), path):
        if record.error:
            raise record.error
        yield record.origin, record.values


def read_records(text: str, path: str | Path) -> Iterator[Record]:
    """Yield the rows of a table's text; the ending of `path` tells its form."""
    suffix = os.path.splitext(str(path))[1].lower()
    return _separated(text, path, suffix) if suffix in (".csv", ".tsv") else _json(text, path)


def _json(text: str, path: str | Path) -> Iterator[Record]:
    if text.lstrip()[:1] == "[":
        items = _list(text, path)
        if items is not None:
            yield from (_object(item, f"{path}[{place}]") for place, item in enumerate(items))
            return
    spread = _spread(text)
    whole = _whole(text, path, spread)
    try:
        rows = rows_in(whole, str(path)) if whole is not None else None
    except InputError as error:
        yield Record(str(path), error=error)
        return
    if rows is not None:
        yield from (_object(value, f"{path}{place}") for place, value in rows)
        return
    if spread:
        yield from (_object(value, f"{path}:{number}") for number, value in spread)
        return
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            yield _parsed(line, f"{path}:{number}")


def _whole(text: str, path: str | Path, spread: list[tuple[int, dict]]) -> dict | None:
    """The object that is all of a .json file; None of other files."""
    if not str(path).lower().endswith(".json"):
        return None
    if len(spread) > 1:
        return None
    try:
        value = spread[0][1] if spread else parse_json(text, path)
    except InputError:  # several lines, or a fault that is named where it lies
        return None
    return value if isinstance(value, dict) else None


def _spread(text: str) -> list[tuple[int, dict]]:
    """The objects of a text that writes them over several lines, and the lines where they begin; none of other texts."""
    first = next((line.strip() for line in split_lines(text) if line.strip()), "")
    if not first.startswith("{") or first.endswith("}"):
        return []
    decoder, at, found = json.JSONDecoder(object_pairs_hook=unique_keys), 0, []
    try:
        while start := re.compile(r"[\s,]*(?=\S)").match(text, at):
            value, at = decoder.raw_decode(text, start.end())
            found.append((len(split_lines(text[: start.end()] + ".")), value))
    except (ValueError, RecursionError):
        return []
    return found


def _list(text: str, path: str | Path) -> list | None:
    """The items of a JSON list of objects; None where the text has a value a line. InputError for a broken list."""
    try:
        items = parse_json(text, path)
    except InputError:
        try:
            parse_json(split_lines(text.lstrip())[0], path)
        except InputError:
            pass
        else:
            return None
        raise
    return items if not items or any(isinstance(item, dict) for item in items) else None


def _parsed(line: str, origin: str) -> Record:
    try:
        return _object(parse_json(line, origin), origin)
    except InputError as error:
        return Record(origin, error=error)


def _object(value: Any, origin: str) -> Record:
    if isinstance(value, dict):
        return Record(origin, value)
    return Record(origin, error=InputError(f"{origin}: expected a JSON object, got {str(value)[:40]!r}"))


def _separated(text: str, path: str | Path, suffix: str) -> Iterator[Record]:
    """Rows of separated values, of which the first line names the columns."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # a long caption is no error
    table = HEADING.sub("", text, count=1)
    before = len(split_lines(text[: len(text) - len(table)]))
    separator, head = separator_of(text, suffix), next(iter(split_lines(table)), "")
    # Strict, or a quote that is never closed would swallow all rows after it.
    spaced = f"{separator} " in head
    reader = csv.DictReader(io.StringIO(table, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced)
    while True:
        begin = before + reader.reader.line_num + 1
        try:
            if reader.fieldnames is None:
                return
            if begin == before + 1:
                _check_names(reader.fieldnames, f"{path}:{begin}")
            begin = before + reader.reader.line_num + 1
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            origin = f"{path}:{begin}"
            yield Record(origin, error=InputError(f"{origin}: {error}; check the quotes from this line on"))
            continue
        yield _cells(values, f"{path}:{before + reader.line_num}", separator)


def _check_names(columns: Sequence[str], origin: str) -> None:
    """Raise InputError where two columns have one name: the first would be lost."""
    names = [str(name).strip() for name in columns]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise InputError(
            f"{origin}: {names.count(twice[0])} columns are called '{twice[0]}'; rename or remove all but one"
        )


def separator_of(text: str, suffix: str) -> str:
    """Return what separates the columns of a table: a tab in a .tsv, else what the first line has most of."""
    head = next(iter(split_lines(HEADING.sub("", text, count=1))), "")
    return "\t" if suffix == ".tsv" and "\t" in head else max(SEPARATORS, key=head.count)


def _cells(values: dict, origin: str, separator: str) -> Record:
    if None in values:
        surplus = len(values[None])
        return Record(
            origin,
            error=InputError(
                f"{origin}: {surplus} cells more than the first line has columns; "
                f"write values that hold {separator!r} in double quotes"
            ),
        )
    return Record(origin, {str(name).strip(): value for name, value in values.items()})


def named_file(values: dict, folder: Path, column: str, role: str, origin: str, inside: bool) -> Path:
    """Return the file that a row names under a column; InputError if there is none, or it leaves a folder it must not."""
    name = file_name(values, column, role, origin)
    path = _on_disk(folder, name)
    if inside and os.path.relpath(path, folder).split(os.sep)[0] == "..":
        raise InputError(f"{origin}: {name} lies outside {folder}; move it inside")
    return Path(path)


def file_name(values: dict, column: str, role: str, origin: str) -> str:
    """Return the name that a row has under a column; `image` may also be `file_name`, as in `datasets`."""
    names = [f"{column}_file_name", column] + (["file_name"] if column == "image" else [])
    name = next((values[name] for name in names if values.get(name)), None)
    if not isinstance(name, str):
        wanted = "file_name" if column == "image" else names[0]
        given = next((other for other in names if other in values), None)
        held = "null" if given is None or values[given] is None else repr(values[given])[:40]
        has = f"'{given}' is {held}" if given else f"it has {', '.join(map(str, values)) or 'nothing'}"
        raise InputError(f"{origin}: no '{wanted}'; {has}; see --{role}_column")
    if re.match(r"[a-z][a-z0-9+]+://", name, re.IGNORECASE):
        raise InputError(f"{origin}: {name[:80]} is not a local file; download it and name the file")
    if "\0" in name:
        raise InputError(f"{origin}: {name[:80]!r} holds a NUL character; fix the name")
    return name


def _on_disk(folder: Path, name: str) -> str:
    """The path of a name: as it is written; else with Windows' backslashes as /, or in the other Unicode normal form."""
    path = os.path.normpath(folder / name)
    if (name.isascii() and "\\" not in name) or os.path.lexists(path):
        return path
    slashed = name.replace("\\", "/")
    spelt = (os.path.normpath(folder / other) for other in _normal_forms(slashed))
    return next(filter(os.path.lexists, spelt), os.path.normpath(folder / slashed))


def _normal_forms(name: str) -> Iterator[str]:
    """A name composed and decomposed: macOS decomposes accents, its folder and its base name alike or not."""
    folder, base = os.path.split(name)
    for first in ("NFC", "NFD"):
        for second in ("NFC", "NFD"):
            yield os.path.join(unicodedata.normalize(first, folder), unicodedata.normalize(second, base))
