"""Rows of tar archives as webdataset writes them, with random access: each file's place in its archive is listed once.

A sample is the files of one key, the name up to its first dot: key.jpg, key.cond.png, and its caption in key.txt,
key.caption or key.json (see `sidecars`). A column of another name than usual stands for `cond`: key.depth.png under
--conditioning_image_column depth. Where a key has no picture of its own, names may have several dots: img.v2.jpg,
img.v2.cond.jpg and img.v2.txt are one sample, if it has all that is asked for. The list is kept as
<archive>.index.json, where that can be written, until the archive changes.
"""

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from .files import Columns, File, Member, Row, Rows, is_picture
from .findings import Finding
from .names import classify_name, foreign_error, is_helper, pointer_error
from .sidecars import SUFFIXES, Sidecars, unused_notes

INDEX = ".index.json"
FORM = 2  # of the list; 1 left out links

Sample = dict[str, str]  # what stands between key and ending, or an ending of captions: the file's name


def read_shards(paths: list[Path], columns: Columns, limit: int | None) -> Rows:
    """Read the samples of uncompressed tar archives in the order of their first files; pictures of no pair are orphans."""
    rows = Rows()
    for path in paths:
        _read_shard(path, columns, rows, limit)
        if limit is not None and len(rows) + len(rows.faults) >= limit:
            return rows
    return rows


def _read_shard(path: Path, columns: Columns, rows: Rows, limit: int | None) -> None:
    members: dict[str, File] = {}
    for name, offset, size in _members(path):
        if not any(map(is_helper, name.split("/"))):
            members[name] = Member(path, name, offset, size)  # of a name given twice tar itself takes the last
    roles, sidecars = _Roles(columns), Sidecars(members)
    used: set[str] = set()
    for key, sample in _samples(members, roles).items():
        found = roles.pictures(sample)
        pictures = {role: name for role, name in found.items() if name}
        used |= set(pictures.values())
        if len(pictures) < len(found):
            rows.orphans += [members[name] for name in pictures.values()]
            continue
        files = {role: members[name] for role, name in pictures.items()}
        try:
            texts = sidecars.first([name for role, name in sample.items() if role in SUFFIXES], columns.caption)
        except InputError as error:
            rows.faults.append(Finding("bad caption", str(error)))
        else:
            rows.append(Row(files["image"], texts, files.get("condition"), f"{path}/{key}", files.get("mask")))
        if limit is not None and len(rows) + len(rows.faults) == limit:
            return
    rows.notes += sidecars.notes(str(path))
    used |= sidecars.read | sidecars.passed_over.keys()
    rest = (name for name in members if name not in used)
    rows.notes += _rest(path, rest, members) if members else [Finding("empty", f"{path}: holds no files")]


def _rest(path: Path, names: Iterable[str], members: dict[str, File]) -> list[Finding]:
    """Notes of the files of an archive that no sample has; of pictures that Pillow alone does not read, what they need."""
    rest = {name: classify_name(name) == "foreign" for name in names}
    return unused_notes(str(path), (name for name, foreign in rest.items() if not foreign)) + [
        Finding("not read", f"{members[name]}: {foreign_error(name)}") for name, foreign in rest.items() if foreign
    ]


class _Roles:
    """Which files of a sample are its picture, condition and mask."""

    def __init__(self, columns: Columns):
        self.names: dict[str, tuple[str, ...]] = {"image": ("", "image", columns.image)}
        if columns.condition:
            self.names["condition"] = ("cond", "conditioning_image", columns.condition)
        if columns.mask:
            self.names["mask"] = (columns.mask,)
        self.known = {name for names in self.names.values() for name in names} | {"cond", "mask"}

    def pictures(self, sample: Sample) -> dict[str, str | None]:
        """Return the name of the file in each role that is asked for, None where there is none."""
        return {
            role: next((sample[name] for name in sample if name in names), None) for role, names in self.names.items()
        }


def _samples(members: Iterable[str], roles: _Roles) -> dict[str, Sample]:
    """Group names by key; those of a key without a picture by the name without its role, if that gives whole samples."""
    keys: dict[str, list[str]] = defaultdict(list)
    for name in members:
        folder, base = os.path.split(name)
        keys[os.path.join(folder, base.partition(".")[0])].append(name)
    samples: dict[str, Sample] = {}
    for key, names in keys.items():
        sample = _sample(names, key)
        if not roles.pictures(sample)["image"] and (several := _several_dots(names, roles)):
            samples |= several
        else:
            samples[key] = sample
    return samples


def _sample(names: Iterable[str], key: str) -> Sample:
    sample: Sample = {}
    for name in names:
        role, suffix = os.path.splitext(name[len(key) :].removeprefix("."))
        if not suffix:
            role, suffix = "", f".{role}"
        sample.setdefault(role if _is_image(name) else suffix.lower(), name)
    return sample


def _several_dots(names: list[str], roles: _Roles) -> dict[str, Sample]:
    """Samples by names without ending and role: whole ones, with a condition or a caption that tells they belong together."""
    keys: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = os.path.splitext(name)[0]
        head, _, role = stem.rpartition(".")
        keys[head if role in roles.known and _is_image(name) else stem].append(name)
    samples = {key: _sample(same, key) for key, same in keys.items()}
    return {key: sample for key, sample in samples.items() if all(roles.pictures(sample).values()) and len(sample) > 1}


def _is_image(name: str) -> bool:
    return is_picture(name) or classify_name(name) == "foreign"


def _members(path: Path) -> list[list]:
    """List the files of an archive as [name, offset, size], from its index where that is up to date."""
    index, status = path.with_name(path.name + INDEX), path.stat()
    state = [status.st_size, status.st_mtime_ns, FORM]
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        if known["state"] == state and all(list(map(type, member)) == [str, int, int] for member in known["members"]):
            return known["members"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
            members = _listed(path, archive)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        why = f"not an uncompressed tar archive, or cut short ({error}); unpack it, or copy it again"
        raise InputError(f"{path}: {pointer_error(path) or why}") from None
    length = path.stat().st_size
    if cut := [name for name, offset, size in members if offset + size > length]:
        raise InputError(f"{path}: cut short inside {cut[0]}; copy it again")
    return members


def _listed(path: Path, archive: tarfile.TarFile) -> list[list]:
    """The archive's files, and its links as the files that they lead to."""
    places: dict[str, tuple[int, int]] = {}
    members: list[list] = []
    for entry in archive:
        if entry.issparse():
            raise InputError(f"{path}: {entry.name} is sparse; write the archive without that option")
        if entry.isfile():
            places[entry.name] = (entry.offset_data, entry.size)
        elif entry.islnk() or entry.issym():
            target = entry.linkname if entry.islnk() else os.path.join(os.path.dirname(entry.name), entry.linkname)
            place = places.get(entry.linkname) or places.get(os.path.normpath(target))
            if place is None and _is_image(entry.name):
                raise InputError(
                    f"{path}: {entry.name} is a link to {entry.linkname}, which is not before it in the archive"
                )
            places |= {entry.name: place} if place else {}
        if entry.name in places and not entry.isdir():
            members.append([entry.name, *places[entry.name]])
    return members
