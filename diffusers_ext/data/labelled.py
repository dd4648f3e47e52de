"""Pictures with a class and a domain, from a folder in any of the usual forms.

    photos/metadata.jsonl               one object a line: {"file_name": ..., "label": "dog", "domain": "sketch", "split": "train"}
    labels.jsonl .csv .tsv .json .parquet    the same as a table of its own; paths in it are relative to it
    train.csv, test.csv                 tables of splits in one folder
    sketch_train.txt, sketch_test.txt   lists, a line "sketch/dog/0.jpg 7" each, in the folder that holds sketch/ (PACS, DomainNet)
    sketch/dog/0.jpg                    a tree of domains and classes (PACS, Office-Home)
    dog/0.jpg                           a tree of classes: one domain, of the folder's name
    train/..., test/...                 either tree below folders that are named as splits, or with them below its domains

Only "label" must be there: without a domain there is one, without a split it is None until `with_splits` draws one. What
splits may be called says `splits`. A table beside pictures of a single folder, or of none, is the table of them. Files that
are no pictures are left out with a warning; hidden files and what programs leave (`names.HELPERS`) without one.
Data sets that need more than this are read in `benchmark_sets`.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import InputError
from ..lines import read_lines
from .labelled_tables import LabelColumns, is_table, names_pictures, read_table
from .labelled_trees import Tree, read_tree, spoken
from .names import is_helper
from .samples import LabelledImages as LabelledImages
from .samples import Sample as Sample
from .samples import checked as checked
from .splits import halve as halve
from .splits import on_one_side as on_one_side
from .splits import split_of
from .splits import with_splits as with_splits
from .tables import find_table

METADATA = tuple(f"metadata.{suffix}" for suffix in ("jsonl", "csv", "tsv", "json", "parquet"))


class TableOptions(Protocol):
    """The options that name the columns of a table."""

    label_column: str
    domain_column: str
    split_column: str
    image_column: str


def columns_of(options: TableOptions) -> dict[str, str]:
    """Return the columns that options name, as arguments of `read_labelled`."""
    return {
        "label_column": options.label_column,
        "domain_column": options.domain_column,
        "split_column": options.split_column,
        "image_column": options.image_column,
    }


def read_labelled(
    source: str | Path,
    label_column: str = "label",
    domain_column: str = "domain",
    split_column: str = "split",
    domain: str | None = None,
    image_column: str = "image",
) -> LabelledImages:
    """Read a folder or table in any of the forms above.

    The columns are of tables; a picture may also be under file_name. domain: what to call the domain of a source that
    names none, by default as its folder. Raises InputError naming file, row and column where something is missing, empty
    or no picture of that name exists.
    """
    path = Path(source).expanduser()
    columns = LabelColumns(label_column, domain_column, split_column, image_column)
    domain = domain or (path.resolve().stem if path.is_file() else path.resolve().name)
    if path.is_file():
        samples = read_table(path, columns, domain, inside=path.name.lower() in METADATA)
    elif not path.is_dir():
        raise InputError(f"{source}: no such folder or file of labelled pictures")
    else:
        samples = _from_folder(path, columns, domain)
    return LabelledImages.of(checked(samples, source))


def read_lists(lists: str | Path, folder: str | Path) -> LabelledImages:
    """Read the lists of one folder that name files below another.

    A class is the name of the file's folder; the lists' numbers must tell the classes apart as those names do. PACS's
    test lists repeat the other two: of several lists the first of train, val, test has the file.
    """
    return LabelledImages.of(checked(_from_lists(_lists(Path(lists)), Path(folder)), lists))


def _from_folder(folder: Path, columns: LabelColumns, domain: str) -> list[Sample]:
    if table := _metadata(folder):
        return read_table(table, columns, domain, inside=True)
    parts = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not is_helper(entry.name)]
    of_parts = [(table, split) for part in parts if (table := _metadata(part)) and (split := split_of(part.name))]
    if parts and len(of_parts) == len(parts):
        return [row for table, split in of_parts for row in read_table(table, columns, domain, split, inside=True)]
    if lists := _lists(folder):
        return _from_lists(lists, folder)
    tree = Tree.of(folder)
    tables = [path for path in sorted(folder.iterdir()) if path.is_file() and is_table(path.name)]
    tables = [path for path in tables if not is_helper(path.name)]
    if tables and (len(tree.pictures) < 2 or any(map(names_pictures, tables))):
        return _from_tables(tables, tree, columns, domain)
    return read_tree(tree, domain)


def _metadata(folder: Path) -> Path | None:
    return find_table(folder, METADATA)


def _from_tables(tables: list[Path], tree: Tree, columns: LabelColumns, domain: str) -> list[Sample]:
    """Samples of the tables beside a tree of pictures; of the tree, where its folders are the tables' classes."""
    named = ", ".join(path.name for path in tables)
    splits = [split_of(path.stem) for path in tables]
    if len(tables) > 1 and not all(splits):
        raise InputError(
            f"{tree.root}: several tables ({named}) beside pictures; name the one to read, or move others away"
        )
    samples = [sample for table, split in zip(tables, splits) for sample in read_table(table, columns, domain, split)]
    if len(tree.pictures) < 2:
        warnings.warn(f"{tree.root}: read as {named} says; the folders are no classes", stacklevel=4)
        return samples
    if {sample.label.replace("_", " ") for sample in samples} <= tree.classes:
        return read_tree(tree, domain)
    raise InputError(
        f"{tree.root}: {named} and the folders name different classes; name the table to read, or move it away"
    )


@dataclass(frozen=True)
class _List:
    """A list of pictures: its file, and the domain and the split that its name tells."""

    path: Path
    domain: str
    split: str

    @classmethod
    def of(cls, path: Path) -> "_List | None":
        """Read a name such as sketch_train.txt, or PACS's sketch_crossval_kfold.txt; None for other names."""
        domain, _, word = path.stem.removesuffix("_kfold").removesuffix("_mini").rpartition("_")
        split = split_of(word)
        return cls(path, domain, split) if domain and split else None


def _lists(folder: Path) -> list[_List]:
    """The lists of a folder: named as such, and with a line that has their form; other texts are notes."""
    named = [_List.of(path) for path in sorted(folder.glob("*.txt")) if not is_helper(path.name)]
    return [given for given in named if given and any(_entry(line) for line in read_lines(given.path))]


def _from_lists(lists: list[_List], folder: Path) -> list[Sample]:
    samples: dict[str, Sample] = {}
    numbers: dict[str, str] = {}
    for listed in sorted(lists, key=lambda listed: ("train", "val", "test").index(listed.split)):
        for origin, name, label, number in _listed(listed.path):
            if numbers.setdefault(label, number) != number:
                raise InputError(
                    f"{origin}: class {label} has number {number} here and {numbers[label]} before; fix it"
                )
            samples.setdefault(name, Sample(folder / name, spoken((label,)), listed.domain, listed.split, origin))
    return list(samples.values())


def _listed(path: Path) -> Iterable[tuple[str, str, str, str]]:
    """(origin, file, class, number) of each line of a list."""
    for line_number, line in enumerate(read_lines(path), 1):
        if line.strip():
            if not (entry := _entry(line)):
                raise InputError(f"{path}:{line_number}: expected 'folder/class/picture number', got {line[:60]!r}")
            yield f"{path}:{line_number}", *entry


def _entry(line: str) -> tuple[str, str, str] | None:
    """(file, class, number) of a line of a list; None for other lines."""
    name, _, number = line.strip().rpartition(" ")
    label = Path(name).parent.name
    return (name, label, number) if label and number.isdigit() else None
