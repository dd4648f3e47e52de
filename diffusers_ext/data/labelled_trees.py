"""Trees of labelled pictures: a folder a class, in a folder a domain, in or above folders of splits."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from .names import classify_name, foreign_error, walk
from .samples import Sample
from .splits import split_of

Parts = tuple[str, ...]  # folders from the root down to the pictures


@dataclass
class Tree:
    """What lies below a folder: the pictures of each folder that has some, and all other files."""

    root: Path
    pictures: dict[Parts, list[str]] = field(default_factory=dict)
    foreign: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> "Tree":
        tree = cls(root)
        for folder, names in walk(root):
            parts = folder.relative_to(root).parts
            kinds = [(name, classify_name(name)) for name in names]
            if pictures := [name for name, kind in kinds if kind == "picture"]:
                tree.pictures[parts] = pictures
            tree.foreign += [folder / name for name, kind in kinds if kind == "foreign"]
            tree.others += [folder / name for name, kind in kinds if kind in ("other", "array")]
            tree.empty += [] if pictures or folder == root else [folder]
        # A folder of folders of pictures is not empty.
        above = {root.joinpath(*parts[:depth]) for parts in tree.pictures for depth in range(len(parts))}
        tree.empty = [folder for folder in tree.empty if folder not in above]
        return tree

    @property
    def classes(self) -> set[str]:
        """The names of the folders that hold pictures, as classes: none for pictures that lie in no folder."""
        return {spoken(_without(parts, self.split_level)[-1:]) for parts in self.pictures if parts} - {""}

    @property
    def split_level(self) -> int | None:
        """At which depth all folders are named as splits, 0 for the first; None if there is none.

        Raises InputError where some are, as a test folder must not become a class or a domain.
        """
        for level in range(max(map(len, self.pictures), default=0)):
            names = {parts[level] for parts in self.pictures if len(parts) > level}
            if all(map(split_of, names)):
                return level
            if tests := sorted(name for name in names if split_of(name) in ("val", "test")):
                other = min(name for name in names if not split_of(name))
                raise InputError(
                    f"{self.root}: a folder {tests[0]} beside {other}: a split or a class? Sort all pictures into folders "
                    f"of splits, such as train and {tests[0]}, or rename {tests[0]}"
                )
        return None


def read_tree(tree: Tree, domain: str) -> list[Sample]:
    """Return the samples of a tree: pictures one folder below their class, two below their domain, all of one depth.

    Raises InputError for other depths and for pictures that need a plug-in. A warning counts what is left out.
    """
    check_foreign(tree.foreign, tree.root)
    level = tree.split_level
    samples: list[Sample] = []
    depths: dict[int, Path] = {}
    for parts, names in tree.pictures.items():
        folder, own = tree.root.joinpath(*parts), _without(parts, level)
        depths.setdefault(len(own), folder)
        _check_depth(folder, own, tree.root, depths, level)
        split = split_of(parts[level]) if level is not None else None
        label, place = spoken(own[-1:]), own[0] if len(own) == 2 else domain
        samples += [Sample(folder / name, label, place, split, str(folder / name)) for name in names]
    if samples:
        _tell_left_out(tree)
    return samples


def check_foreign(files: Iterable[Path], root: Path) -> None:
    """Raise InputError for pictures that the installed Pillow does not read, with the remedy of the first."""
    if files := list(files):
        raise InputError(f"{files[0]}: {foreign_error(files[0].name)} ({len(files)} such files in {root})")


def spoken(parts: Parts) -> str:
    """A class's name as words: alarm_clock is read "alarm clock"."""
    return parts[-1].replace("_", " ") if parts else ""


def _without(parts: Parts, level: int | None) -> Parts:
    return parts if level is None else parts[:level] + parts[level + 1 :]


def _check_depth(folder: Path, own: Parts, root: Path, depths: dict[int, Path], level: int | None) -> None:
    if len(own) in (1, 2) and len(depths) == 1:
        return
    if not own and level is not None:
        raise InputError(
            f"{folder}: pictures of a split in no folder of a class; sort them into classes, or move them away"
        )
    others = f", as those in {next(iter(depths.values()))}" if len(depths) > 1 else ""
    splits = " below the folders of splits" if level is not None else ""
    raise InputError(
        f"{folder}: pictures {len(own)} folders below {root}{splits}; all must lie in class/ or in domain/class/{others}"
    )


def _tell_left_out(tree: Tree) -> None:
    if tree.others:
        counts = Counter(os.path.splitext(path.name)[1].lower() or "without an ending" for path in tree.others)
        told = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        warnings.warn(f"{tree.root}: left out {told}: no pictures, such as {tree.others[0]}", stacklevel=5)
    if tree.empty:
        told = ", ".join(str(folder.relative_to(tree.root)) for folder in tree.empty[:9])
        more = f" and {len(tree.empty) - 9} more" if len(tree.empty) > 9 else ""
        warnings.warn(f"{tree.root}: no class of folders without pictures: {told}{more}", stacklevel=5)
