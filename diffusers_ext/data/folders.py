"""Rows of folders and of zip archives: a table beside the pictures, or folders whose pictures are paired by name."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from ..errors import InputError
from ..lines import read_text
from .archives import unwrapped, zip_files
from .files import Columns, File, Row, Rows, captions, is_picture
from .findings import Finding
from .names import classify_name, walk
from .sidecars import Sidecars, read_file_text, stem_of, unused_notes
from .splits import split_of
from .tables import Record, file_name, named_file, read_records, separator_of

METADATA = "metadata.jsonl"
TABLES = (
    METADATA,
    "metadata.csv",
    "prompt.json",
    "metadata.json",
    "metadata.tsv",
)  # names that make a folder a data set
PARQUET_TABLE = "metadata.parquet"
FILL50K = {"image": "target", "conditioning_image": "source", "text": "prompt"}
FOLDERS = {
    "image": ("images",),
    "conditioning_image": ("conditioning_images", "conditions"),
    "mask": ("masks",),
}  # besides the column's name
ABOUT = (".md", ".rst", ".pdf", ".html", ".py", ".ipynb", ".log")  # files about the data, at the top of their folder
WRITE_TABLE = "write one JSON object per picture: file_name, conditioning_image_file_name, text"

Named = Callable[[dict, str, str, str], File]  # (values, column, role, origin) -> the file that a row names


def read_table(path: Path, columns: Columns, limit: int | None) -> Rows:
    """Read a table; one that makes its folder a data set names files inside it only, and all of them."""
    text, suffix = read_text(path), path.suffix.lower()
    rows = table_rows(path, read_records(text, path), columns, limit)
    usual = {".csv": ",", ".tsv": "\t"}
    if suffix in usual and (separator := separator_of(text, suffix)) != usual[suffix]:
        rows.notes.append(Finding("separator", f"{path}: its columns are separated by {separator!r}"))
    return rows


def table_rows(path: Path, records: Iterable[Record], columns: Columns, limit: int | None) -> Rows:
    """Return the rows of a table's records, whose paths are relative to it."""
    whole = path.name.lower() in (*TABLES, PARQUET_TABLE)
    archives = sorted(path.parent.glob("*.zip")) if whole else []
    zipped = {name: file for archive in archives for name, file in _zipped(archive).items()}
    named = partial(_named_in_folder, folder=path.parent, inside=whole, zipped=zipped)
    taken = list(islice(records, limit))
    rows = rows_of(taken, columns, named)
    if whole and limit is None:
        _name_the_rest(rows, path, taken, archives)
    return rows


def _zipped(archive: Path) -> dict[str, File]:
    """The files of an archive beside a table, by their names in it and from its first folder that holds several."""
    files = zip_files(archive)
    return unwrapped(files) | files


def rows_of(records: Iterable[Record], columns: Columns, named: Named) -> Rows:
    """Return the rows of a table; those that cannot be used are its faults."""
    rows, splits, backslashes = Rows(), dict[str, int](), 0
    for record in records:
        try:
            row = _row(record, columns, named)
        except InputError as error:
            rows.faults.append(Finding("bad row", str(error)))
            continue
        rows.append(row)
        split = record.values.get("split")
        if isinstance(split, str) and split_of(split):
            splits[split] = splits.get(split, 0) + 1
        backslashes += any("\\" in str(value) for name, value in record.values.items() if name != columns.caption)
    if backslashes:
        rows.notes.append(Finding("backslash", f"{backslashes} rows name files with \\, which is read as /"))
    if len(splits) > 1:
        told = ", ".join(f"{name} ({count})" for name, count in splits.items())
        rows.notes.append(
            Finding("split", f"rows of several splits are read: {told}; leave out rows to hold them back")
        )
    return rows


def _row(record: Record, columns: Columns, named: Named) -> Row:
    if record.error:
        raise record.error
    values, origin = record.values, record.origin
    if values.keys() >= set(FILL50K.values()):
        values = {**{ours: values[theirs] for ours, theirs in FILL50K.items()}, **values}
    image = named(values, columns.image, "image", origin)
    condition = named(values, columns.condition, "conditioning_image", origin) if columns.condition else None
    mask = named(values, columns.mask, "mask", origin) if columns.mask else None
    return Row(image, captions(values, columns.caption, origin), condition, origin, mask)


def _named_in_folder(
    values: dict, column: str, role: str, origin: str, folder: Path, inside: bool, zipped: Mapping[str, File]
) -> File:
    path = named_file(values, folder, column, role, origin, inside)
    if zipped and not path.exists():
        return zipped.get(path.relative_to(folder).as_posix(), path)
    return path


def _name_the_rest(rows: Rows, table: Path, records: list[Record], archives: list[Path]) -> None:
    """Add what lies in a table's folder and is named by no row: pictures beside others are orphans, the rest is noted."""
    folder = table.parent
    named = {str(file) for row in rows for file in (row.image, row.condition, row.mask) if file}
    texts = (value for record in records for value in record.values.values() if isinstance(value, str))
    named |= {os.path.normpath(folder / text) for text in texts if is_picture(text)}
    places = {os.path.dirname(path) for path in named}
    rest = []
    for place, names in walk(folder, dead_links=True):
        for name in names:
            path = place / name
            if str(path) in named or path == table or path in archives or (place == folder and is_about(name)):
                continue
            if is_picture(name) and str(place) in places:
                rows.orphans.append(path)
            else:
                rest.append(path.relative_to(folder).as_posix())
    rows.orphans.sort(key=str)
    rows.notes += unused_notes(str(folder), rest)


def read_zip(path: Path, columns: Columns, limit: int | None) -> Rows:
    """Read a zip of pictures: with a table inside, or with folders to pair by name."""
    files = unwrapped(zip_files(path))
    kinds = {name: os.path.basename(name).lower() for name in files}
    tables = [name for name in files if kinds[name] in TABLES]
    if not tables:
        return pair_folders(files, str(path), columns, limit)
    table = min(tables, key=lambda name: (name.count("/"), TABLES.index(kinds[name])))
    text = read_file_text(files[table])
    top = os.path.dirname(table)
    named = partial(
        _named_in_zip, files={unicodedata.normalize("NFC", name): file for name, file in files.items()}, top=top
    )
    rows = rows_of(islice(read_records(text, str(files[table])), limit), columns, named)
    if limit is None:
        used = {str(file) for row in rows for file in (row.image, row.condition, row.mask) if file}
        rest = {name: file for name, file in files.items() if name != table and str(file) not in used}
        rows.notes += unused_notes(str(path), [name for name in rest if not is_about(name)])
    return rows


def _named_in_zip(values: dict, column: str, role: str, origin: str, files: Mapping[str, File], top: str) -> File:
    name = file_name(values, column, role, origin).replace("\\", "/")
    file = files.get(unicodedata.normalize("NFC", os.path.normpath(os.path.join(top, name))))
    if file is None:
        raise InputError(f"{origin}: {name} is not in the archive; pack it, or remove the row")
    return file


def folder_files(folder: Path) -> dict[str, File]:
    """Return the files below a folder by their path from it, without what programs leave behind."""
    found = (place / name for place, names in walk(folder, dead_links=True) for name in names)
    return {path.relative_to(folder).as_posix(): path for path in found}


def pair_folders(files: Mapping[str, File], where: str, columns: Columns, limit: int | None) -> Rows:
    """Pair the pictures of two folders by their path without ending; captions stand beside the images (see `sidecars`)."""
    roles = [column for column in (columns.image, columns.condition, columns.mask) if column]
    folders = {column: _subfolder(files, where, column) for column in roles}
    notes: list[Finding] = []
    pictures = {column: _by_stem(files, where, folder, notes) for column, folder in folders.items()}
    whole = set.intersection(*map(set, pictures.values()))
    images, sidecars = pictures[columns.image], Sidecars(files)
    rows = Rows()
    for stem in sorted(whole)[:limit]:
        file = files[images[stem]]
        condition, mask = (
            files[pictures[column][stem]] if column else None for column in (columns.condition, columns.mask)
        )
        try:
            texts = sidecars.captions(images[stem], columns.caption)
        except InputError as error:
            rows.faults.append(Finding("bad caption", str(error)))
        else:
            rows.append(Row(file, texts, condition, str(file), mask))
    rows.notes = notes + sidecars.notes(where)
    if limit is None:
        rows.orphans = [
            files[name] for named in pictures.values() for stem, name in sorted(named.items()) if stem not in whole
        ]
        used = (
            {name for named in pictures.values() for name in named.values()} | sidecars.read | {*sidecars.passed_over}
        )
        rest = (name for name in files if name not in used and not is_about(name))
        rows.notes += unused_notes(where, rest)
    return rows


def _subfolder(files: Mapping[str, File], where: str, column: str) -> str:
    tops = sorted({name.split("/")[0] for name in files if "/" in name})
    found = next((name for name in (column, *FOLDERS.get(column, ())) if name in tops), None)
    if found is None:
        held = ", ".join([f"{top}/" for top in tops] + sorted(name for name in files if "/" not in name))
        held = held if len(held) < 200 else f"{held[:200]} ..."
        raise InputError(
            f"{os.path.join(where, METADATA)}: missing, and {where} has no folder '{column}' to pair by name, no prompt.json, "
            f"no *.tar; it has {held or 'no files'}; {WRITE_TABLE}"
        )
    return found


def _by_stem(files: Mapping[str, File], where: str, folder: str, notes: list[Finding]) -> dict[str, str]:
    """The pictures of a folder by their path in it, without ending and in one Unicode normal form."""
    inside = {name: name.removeprefix(f"{folder}/") for name in sorted(files) if name.startswith(f"{folder}/")}
    found: dict[str, str] = {}
    for kinds in (("picture", "array"), ("foreign",)):  # a raw photo beside its JPEG is left to the notes
        for name in (name for name in inside if classify_name(name) in kinds):
            other = found.setdefault(stem_of(inside[name]), name)
            if other != name and kinds != ("foreign",):
                raise InputError(
                    f"{files[name]}: {files[other]} has the same name but for its suffix; remove one of them"
                )
    return _of_train(found, os.path.join(where, folder), notes)


def _of_train(found: dict[str, str], where: str, notes: list[Finding]) -> dict[str, str]:
    """The pictures of the split "train", where all lie in folders named as splits."""
    splits = {stem: split_of(stem.split("/")[0]) if "/" in stem else None for stem in found}
    if not found or not all(splits.values()) or len(set(splits.values())) == 1:
        return found
    if "train" not in splits.values():
        raise InputError(f"{where}: no split 'train'; it has {', '.join(sorted(map(str, set(splits.values()))))}")
    others = ", ".join(sorted({str(split) for split in splits.values()} - {"train"}))
    notes.append(Finding("split", f"{where}: split 'train' is read, not {others}"))
    return {stem: name for stem, name in found.items() if splits[stem] == "train"}


def is_about(name: str) -> bool:
    """Say whether a file is about the data, by its name below their folder."""
    stem, suffix = os.path.splitext(name.lower())
    return not os.path.dirname(name) and (
        suffix in ABOUT or stem in ("readme", "license", "licence", "notice", "dataset_infos")
    )
