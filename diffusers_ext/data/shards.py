"""Rows of tar archives as webdataset writes them, with random access: each file's place in its archive is listed once.

A sample is the files of one key, the name up to its first dot: key.jpg, key.cond.png, key.txt or key.json. A column
of another name than usual stands for `cond`: key.depth.png under --conditioning_image_column depth. The list is kept
as <archive>.index.json, where that can be written, until the archive changes.
"""

import json
import os
import tarfile
from pathlib import Path

from ..errors import InputError
from .files import Columns, Member, Row, Rows, captions, is_picture, text_captions

INDEX = ".index.json"


def read_shards(paths: list[Path], columns: Columns, limit: int | None) -> Rows:
    """Read the samples of uncompressed tar archives in the order of their first files; pictures of no pair are orphans."""
    image_names = {"", "image", columns.image}
    condition_names = {"cond", "conditioning_image", columns.condition} if columns.condition else set()
    rows = Rows()
    for path in paths:
        for key, members in _samples(path).items():
            pictures = {role: member for role, member in members.items() if is_picture(member.name)}
            image = _first(pictures, image_names)
            condition = _first(pictures, condition_names)
            mask = _first(pictures, {columns.mask}) if columns.mask else None
            if image is None or (condition is None and columns.condition) or (mask is None and columns.mask):
                rows.orphans += [picture for picture in (image, condition, mask) if picture]
                continue
            rows.append(Row(image, _captions(members, columns, f"{path}/{key}"), condition, f"{path}/{key}", mask))
            if len(rows) == limit:
                return Rows(rows)
    return rows


def _samples(path: Path) -> dict[str, dict[str, Member]]:
    """Group an archive's files: {key: {what stands between key and suffix, or .txt, .json: file}}."""
    samples: dict[str, dict[str, Member]] = {}
    for name, offset, size in _members(path):
        folder, base = os.path.split(name)
        stem, _, extension = base.partition(".")
        role, _, suffix = extension.rpartition(".")
        sample = samples.setdefault(os.path.join(folder, stem), {})
        sample.setdefault(f".{suffix}" if not is_picture(base) else role, Member(path, name, offset, size))
    return samples


def _first(pictures: dict[str, Member], names: set[str]) -> Member | None:
    return next((member for role, member in pictures.items() if role in names), None)


def _captions(members: dict[str, Member], columns: Columns, origin: str) -> tuple[str, ...]:
    """The lines of key.txt, else the caption column of key.json, else the empty caption."""
    try:
        if ".txt" in members:
            return text_captions(_text(members[".txt"]))
        if ".json" in members:
            return captions(json.loads(_text(members[".json"])), columns.caption, str(members[".json"]))
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise InputError(f"{origin}: its caption cannot be read ({error}); mend the archive") from None
    return ("",)


def _text(member: Member) -> str:
    with member.open() as file:
        return file.read().decode("utf-8")


def _members(path: Path) -> list[list]:
    """List the files of an archive as [name, offset, size], from its index where that is up to date."""
    index, status = path.with_name(path.name + INDEX), path.stat()
    state = [status.st_size, status.st_mtime_ns]
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        if known["state"] == state:
            return known["members"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not ours to trust
    members = _scan(path)
    temporary = index.with_name(f"{index.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"state": state, "members": members}), encoding="utf-8")
        os.replace(temporary, index)
    except OSError:
        pass  # a read-only place: the archive is scanned again next time
    return members


def _scan(path: Path) -> list[list]:
    try:
        with tarfile.open(path, "r:") as archive:
            members: list[list] = [
                [each.name, each.offset_data, each.size] for each in archive if each.isfile() and not each.issparse()
            ]
    except tarfile.TarError as error:
        raise InputError(
            f"{path}: not an uncompressed tar archive, or cut short ({error}); unpack or mend it"
        ) from None
    length = path.stat().st_size
    if cut := [name for name, offset, size in members if offset + size > length]:
        raise InputError(f"{path}: cut short inside {cut[0]}; copy it again")
    return members
