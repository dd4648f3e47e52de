"""Pictures with a class and a domain, from a folder in any of the usual forms, and their splits.

    photos/metadata.jsonl               one object a line: {"file_name": ..., "label": "dog", "domain": "sketch", "split": "train"}
    labels.jsonl, labels.csv            the same as a table of its own; paths in it are relative to it
    sketch_train.txt, sketch_test.txt   lists, a line "sketch/dog/0.jpg 7" each, in the folder that holds sketch/ (PACS, DomainNet)
    sketch/dog/0.jpg                    a tree of domains and classes (PACS, Office-Home)
    dog/0.jpg                           a tree of classes: one domain, of the folder's name
    train/..., test/...                 either tree below folders that are named as splits

Only "label" must be there: without a domain there is one, without a split it is None until `with_splits` draws one.
Data sets that need more than this are read in `benchmark_sets`.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import randomness
from ..cache import digest_of_file
from ..errors import InputError
from ..lines import read_lines
from .files import File, is_picture
from .rows import TABLES, named_file, records

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "crossval": "val"}
SPLITS |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Sample:
    """One picture, its class and domain, and the split it belongs to where that is known: train, val or test."""

    file: File
    label: str
    domain: str
    split: str | None = None
    origin: str = ""


@dataclass(frozen=True)
class LabelledImages:
    """Samples in a stable order, and the names of their classes and domains, each sorted.

    A part of a table keeps the names of the whole, so that class 3 is class 3 in every part.
    """

    samples: tuple[Sample, ...]
    labels: tuple[str, ...]
    domains: tuple[str, ...]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "LabelledImages":
        """Return the table of these samples; InputError if there is none."""
        samples = tuple(samples)
        if not samples:
            raise InputError("no labelled pictures: nothing to learn from")
        labels, domains = ({getattr(sample, name) for sample in samples} for name in ("label", "domain"))
        return cls(samples, tuple(sorted(labels)), tuple(sorted(domains)))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def files(self) -> list[File]:
        return [sample.file for sample in self.samples]

    @cached_property
    def label_index(self) -> np.ndarray:
        """The class of each sample, a position in `labels`: (n,) int64."""
        return _positions([sample.label for sample in self.samples], self.labels)

    @cached_property
    def domain_index(self) -> np.ndarray:
        """The domain of each sample, a position in `domains`: (n,) int64."""
        return _positions([sample.domain for sample in self.samples], self.domains)

    def indices(
        self,
        split: str | Collection[str] | None = None,
        domain: str | Collection[str] | None = None,
        label: str | Collection[str] | None = None,
    ) -> np.ndarray:
        """Return the positions of the samples of these splits, domains and classes; None asks for all: (m,) int64.

        Raises InputError, listing what there is, for a name that no sample has.
        """
        kept = np.ones(len(self), bool)
        for field, wanted in (("split", split), ("domain", domain), ("label", label)):
            if wanted is not None:
                kept &= self._has(field, {wanted} if isinstance(wanted, str) else set(wanted))
        return kept.nonzero()[0]

    def take(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """Return the samples at these positions, under the same names of classes and domains."""
        return replace(self, samples=tuple(self.samples[index] for index in indices))

    def where(self, **wanted: str | Collection[str]) -> "LabelledImages":
        """Return the part that `indices` finds."""
        return self.take(self.indices(**wanted))

    def counts(self) -> dict[tuple[str, str, str | None], int]:
        """Return the number of samples of each (domain, label, split) there is."""
        return dict(sorted(Counter((s.domain, s.label, s.split) for s in self.samples).items(), key=str))

    def _has(self, field: str, wanted: set[str]) -> np.ndarray:
        values = [getattr(sample, field) for sample in self.samples]
        if unknown := sorted(wanted - set(values)):
            there = ", ".join(sorted({str(value) for value in values}))
            raise InputError(f"no picture has {field} {unknown[0]!r}; there are {there}")
        return np.array([value in wanted for value in values], bool)


def read_labelled(
    source: str | Path,
    label_column: str = "label",
    domain_column: str = "domain",
    split_column: str = "split",
    domain: str | None = None,
) -> LabelledImages:
    """Read a folder or table in any of the forms above.

    The columns are of tables. domain: what to call the domain of a source that names none, by default as its folder.
    Raises InputError naming file, row and column where something is missing, empty or no picture of that name exists.
    """
    path = Path(source)
    domain = domain or (path.resolve().stem if path.is_file() else path.resolve().name)
    if path.is_file():
        samples = _from_table(path, (label_column, domain_column, split_column), domain)
    elif not path.is_dir():
        raise InputError(f"{source}: no such folder or file of labelled pictures")
    elif table := next((path / name for name in TABLES[:2] if (path / name).is_file()), None):
        samples = _from_table(table, (label_column, domain_column, split_column), domain)
    elif any(map(_of_list, path.glob("*.txt"))):
        return read_lists(path, path)
    else:
        samples = _from_tree(path, domain)
    return LabelledImages.of(checked(samples, source))


def read_lists(lists: str | Path, folder: str | Path) -> LabelledImages:
    """Read the lists of one folder that name files below another.

    A class is the name of the file's folder; the lists' numbers must tell the classes apart as those names do. PACS's
    test lists repeat the other two: of several lists the first of train, val, test has the file.
    """
    named = [(*of, path) for path in sorted(Path(lists).glob("*.txt")) if (of := _of_list(path))]
    named.sort(key=lambda each: ("train", "val", "test").index(each[1]))
    found: dict[str, Sample] = {}
    numbers: dict[str, str] = {}
    for domain, split, path in named:
        for origin, name, label, number in _listed(path):
            if numbers.setdefault(label, number) != number:
                raise InputError(
                    f"{origin}: class {label} has number {number} here and {numbers[label]} before; mend it"
                )
            found.setdefault(name, Sample(Path(folder) / name, _spoken(label), domain, split, origin))
    return LabelledImages.of(checked(found.values(), lists))


def checked(samples: Iterable[Sample], source: str | Path) -> list[Sample]:
    """Return samples as a list; InputError if there is none, or naming the first file that is not there."""
    samples = list(samples)
    if not samples:
        raise InputError(f"{source}: holds no labelled pictures; see diffusers_ext/data/labelled.py for the forms")
    gone = [sample for sample in samples if isinstance(sample.file, Path) and not sample.file.is_file()]
    if gone:
        more = f", and {len(gone) - 1} more are" if len(gone) > 1 else " is"
        raise InputError(f"{gone[0].origin}: {gone[0].file}{more} missing; complete the folder or remove the rows")
    return samples


def with_splits(table: LabelledImages, fractions: Mapping[str, float], seed: int = 0) -> LabelledImages:
    """Return the table with splits drawn anew, in these fractions of each (label, domain): {"train": 0.8, "test": 0.2}.

    The draw depends on the seed and a picture's bytes, not on its name or place, and equal pictures of one class and
    domain stay together. Of n different pictures a split takes round(n·F) - round(n·F'), F and F' the sums of fractions
    up to it and before it. Raises InputError unless the fractions are positive and sum to 1.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise InputError(f"fractions of the splits must be positive and sum to 1, got {dict(fractions)}")
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(digest_of_file, table.files))
    strata: dict[tuple[str, str], set[str]] = {}
    for sample, digest in zip(table.samples, digests):
        strata.setdefault((sample.label, sample.domain), set()).add(digest)
    names, ends = list(fractions), np.cumsum(list(fractions.values()))
    split: dict[tuple[str, str, str], str] = {}
    for (label, domain), members in strata.items():
        ordered = sorted(members, key=lambda digest: (_draw(seed, digest), digest))
        cuts = np.rint(ends * len(ordered)).astype(int)
        for position, digest in enumerate(ordered):
            split[label, domain, digest] = names[int(np.searchsorted(cuts, position, side="right"))]
    samples = (
        replace(sample, split=split[sample.label, sample.domain, digest])
        for sample, digest in zip(table.samples, digests)
    )
    return replace(table, samples=tuple(samples))


def halve(table: LabelledImages, split: str, chosen: Callable[[Sample], bool]) -> LabelledImages:
    """Make every other chosen sample of a split validation data and the rest test data, as LADS does: val, test, val ...

    halve(table, "test", lambda sample: sample.domain == "sketch") leaves half of the sketches to test on.
    """
    samples, turn = list(table.samples), 0
    for index, sample in enumerate(samples):
        if sample.split == split and chosen(sample):
            samples[index], turn = replace(sample, split=("val", "test")[turn]), 1 - turn
    return replace(table, samples=tuple(samples))


def _draw(seed: int, digest: str) -> float:
    return randomness.uniform(seed, "split", (int(digest[:16], 16), int(digest[16:32], 16)))


def _positions(values: list[str], names: tuple[str, ...]) -> np.ndarray:
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[value] for value in values], np.int64)


def _from_table(path: Path, columns: tuple[str, str, str], domain: str) -> Iterable[Sample]:
    label_column, domain_column, split_column = columns
    for origin, values in records(path):
        file = named_file(values, path.parent, "image", "image", origin, path.name in TABLES)
        label = _name(values, label_column, origin)
        if label is None:
            held = ", ".join(map(str, values))
            raise InputError(f"{origin}: no label under '{label_column}'; it has {held}; see --label_column")
        split = _name(values, split_column, origin) or ""
        yield Sample(
            file, label, _name(values, domain_column, origin) or domain, SPLITS.get(split, split) or None, origin
        )


def _name(values: dict, column: str, origin: str) -> str | None:
    """The text or whole number under a column; None where it is missing or empty."""
    value = values.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{origin}: '{column}' must be a name or a whole number, got {value!r}; write a name")
    return str(value).strip()


def _of_list(path: Path) -> tuple[str, str] | None:
    """(domain, split) of a list's name: sketch_train.txt, or PACS's sketch_crossval_kfold.txt."""
    domain, _, split = path.stem.removesuffix("_kfold").removesuffix("_mini").rpartition("_")
    return (domain, SPLITS[split]) if domain and split in SPLITS else None


def _listed(path: Path) -> Iterable[tuple[str, str, str, str]]:
    """(origin, file, class, number) of each line of a list."""
    for line_number, line in enumerate(read_lines(path), 1):
        name, _, number = line.strip().rpartition(" ")
        if not line.strip():
            continue
        label = Path(name).parent.name
        if not label or not number.isdigit():
            raise InputError(f"{path}:{line_number}: expected 'folder/class/picture number', got {line[:60]!r}")
        yield f"{path}:{line_number}", name, label, number


def _from_tree(root: Path, domain: str) -> Iterable[Sample]:
    """A tree of pictures one folder below their class, two below their domain; all of one depth."""
    tops = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    split_folders = bool(tops) and all(top in SPLITS for top in tops)
    depths: dict[int, str] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(folder).relative_to(root).parts
        split, parts = (SPLITS[parts[0]], parts[1:]) if split_folders and parts else (None, parts)
        pictures = sorted(name for name in files if is_picture(name))
        if not pictures:
            continue
        depths.setdefault(len(parts), folder)
        if len(parts) not in (1, 2) or len(depths) > 1:
            raise InputError(
                f"{folder}: pictures {len(parts)} folders below {root}; all must lie in class/ or in domain/class/"
                + (f", as those in {next(iter(depths.values()))}" if len(depths) > 1 else "")
            )
        for name in pictures:
            file = Path(folder) / name
            yield Sample(file, _spoken(parts[-1]), parts[0] if len(parts) == 2 else domain, split, str(file))


def _spoken(folder: str) -> str:
    """A class's name as words: alarm_clock is read "alarm clock"."""
    return folder.replace("_", " ")
