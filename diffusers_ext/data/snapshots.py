"""Which files of a data set are its split "train", where names tell splits, as in snapshots of the Hub's repositories.

    data/train-00000-of-00002.parquet   data/test-00000-of-00001.parquet
    train/0000.parquet                  pairs_train.tar is of no split: the split's name must begin the file's

Train is read and the others are named. Where there are others but no train, nothing is read.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .findings import Finding
from .names import walk
from .splits import split_of

PART = re.compile(r"(?P<name>.*)(?P<number>\d{5})-of-(?P<total>\d{5})\..*")


@dataclass(frozen=True)
class Chosen:
    """The files to read, in order, and what to tell of the others."""

    files: list[Path]
    notes: list[Finding]


def files_below(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files below a folder that have one of these endings, in order."""
    found = (place / name for place, names in walk(folder, dead_links=True) for name in names)
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def training_files(root: Path, files: Sequence[Path], config: str | None = None) -> Chosen:
    """Return the files of the split "train" and of one configuration; InputError where that cannot be told."""
    groups: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        groups[_split(path.relative_to(root))].append(path)
    kept = groups.get("train") or groups.get(None)
    if not kept:
        raise InputError(
            f"{root}: no split 'train'; it has {_counted(groups)}; name the files of one split to train on"
        )
    others = {split: paths for split, paths in groups.items() if paths is not kept}
    notes = [Finding("split", f"{root}: split 'train' is read, not {_counted(others)}")] if others else []
    chosen = _of_config(root, kept, config)
    return Chosen(chosen, notes + _missing(chosen))


def _missing(files: Sequence[Path]) -> list[Finding]:
    """Notes of files that names tell of, as of -00001-of-00003, but that are not there."""
    parts: dict[tuple[Path, str, int], set[int]] = defaultdict(set)
    for path in files:
        if part := PART.fullmatch(path.name):
            parts[path.parent, part["name"], int(part["total"])].add(int(part["number"]))
    return [
        Finding(
            "missing", f"{folder}: {len(numbers)} of {total} files {name}*-of-{total:05} are there; fetch the others"
        )
        for (folder, name, total), numbers in parts.items()
        if len(numbers) < total
    ]


def training_folder(folder: Path) -> tuple[Path, list[Finding]] | None:
    """Return the folder named as the split "train" and a note of the others; None where no folder is named as a split."""
    splits: dict[str, list[str]] = defaultdict(list)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and (split := split_of(entry.name)):
            splits[split].append(entry.name)
    if not splits:
        return None
    names = ", ".join(name for split in splits.values() for name in split)
    if len(splits["train"]) != 1:
        raise InputError(f"{folder}: it has the folders {names}; name the one to train on")
    (train,) = splits["train"]
    others = ", ".join(name for split in splits.values() for name in split if name != train)
    notes = [Finding("split", f"{folder}: {train}/ is read, not {others}")] if others else []
    return folder / train, notes


def split_note(where: str | Path, read: str, others: Sequence[str]) -> list[Finding]:
    """Return the note that one of several splits is read."""
    return [Finding("split", f"{where}: split '{read}' is read, not {', '.join(others)}")] if others else []


def _split(path: Path) -> str | None:
    """The split that a folder of a path, or the beginning of its name, tells."""
    named = (split_of(part) for part in (*path.parts[:-1], re.split(r"[-_.]", path.name)[0]))
    return next(filter(None, named), None)


def _counted(groups: dict[str | None, list[Path]]) -> str:
    return ", ".join(f"{split or 'files of no split'} ({len(paths)} files)" for split, paths in groups.items())


def _of_config(root: Path, files: list[Path], config: str | None) -> list[Path]:
    """The files of one configuration, each of which has a folder of its own."""
    if config:
        return [path for path in files if config in path.relative_to(root).parts] or files
    places = {_without_split(path.relative_to(root).parts[:-1]) for path in files}
    if len(places) > 1:
        names = ", ".join(sorted("/".join(place) or "." for place in places))
        raise InputError(f"{root}: files in several folders ({names}); name one of them, or --dataset_config_name")
    return files


def _without_split(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part in parts if not split_of(part))
