"""Captions in files beside their pictures: of 0.png, 0.txt or 0.png.txt, a caption a line; .caption, kohya's; or .json.

Of several the first of .txt, .caption and .json is read, in letters of any case, and a note names the others. A .json
holds an object, and its caption stands under the caption column or "caption", as img2dataset writes it.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from ..errors import InputError
from ..lines import decode, parse_json
from .files import File, captions, text_captions
from .findings import Finding

SUFFIXES = (".txt", ".caption", ".json")


def is_sidecar(name: str) -> bool:
    """Say whether a file may hold the caption of a picture, by its ending."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def stem_of(name: str) -> str:
    """Return a path without its ending, in one Unicode normal form, so that equal names are equal on every system."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


class Sidecars:
    """The files of captions among some files, and which of them were read."""

    def __init__(self, files: Mapping[str, File]):
        self.files = files
        self.beside: dict[str, list[str]] = defaultdict(
            list
        )  # by the name of the picture, without its ending or with it
        for name in sorted(filter(is_sidecar, files), key=_priority):
            self.beside[stem_of(name)].append(name)
        self.read: set[str] = set()
        self.passed_over: dict[str, str] = {}  # a file that was not read, and the one that was instead

    def captions(self, picture: str, column: str) -> tuple[str, ...]:
        """Return the captions of a picture, the empty one where it has no file; InputError if that cannot be read."""
        whole = unicodedata.normalize("NFC", picture)
        return self.first([*self.beside.get(stem_of(picture), []), *self.beside.get(whole, [])], column)

    def first(self, names: list[str], column: str) -> tuple[str, ...]:
        """Return the captions in the first of these files, by the rule above."""
        if not names:
            return ("",)
        chosen, *others = sorted(names, key=_priority)
        self.read.add(chosen)
        self.passed_over |= dict.fromkeys(others, chosen)
        return read_captions(self.files[chosen], chosen, column)

    def notes(self, where: str) -> list[Finding]:
        """Return a note for each kind of file that was not read as another was."""
        kinds = Counter((_suffix(name), _suffix(chosen)) for name, chosen in self.passed_over.items())
        example = {(_suffix(name), _suffix(chosen)): name for name, chosen in self.passed_over.items()}
        return [
            Finding(
                "caption file",
                f"{where}: captions are read from {chosen}; {count} {suffix} beside them not, such as {example[suffix, chosen]}",
            )
            for (suffix, chosen), count in kinds.items()
        ]


def read_captions(file: File, name: str, column: str) -> tuple[str, ...]:
    """Return the captions in a file; InputError names it and what is wrong with it."""
    text = read_file_text(file)
    if _suffix(name).lower() != ".json":
        return text_captions(text)
    values = parse_json(text, str(file))
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected a JSON object with a caption, got {str(values)[:40]!r}")
    return captions(
        values, column if values.get(column) is not None or "caption" not in values else "caption", str(file)
    )


def read_file_text(file: File) -> str:
    """Return the text that a file holds, wherever it lies; InputError names it and what is wrong with it."""
    try:
        with file.open("rb") as stream:
            data = stream.read()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    return decode(data, str(file))


def unused_notes(where: str, names: Iterable[str]) -> list[Finding]:
    """Return a note for each folder and ending of files that nothing reads."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[os.path.dirname(name), _suffix(name).lower()].append(os.path.basename(name))
    return [
        Finding("not read", f"{os.path.join(where, folder, same[0])}: not read" + _more(len(same) - 1, suffix))
        for (folder, suffix), same in groups.items()
    ]


def _more(count: int, suffix: str) -> str:
    return f", nor {count} more files {suffix or 'without an ending'} beside it" if count else ""


def _priority(name: str) -> tuple[int, bool, str]:
    suffix = _suffix(name)
    return SUFFIXES.index(suffix.lower()), suffix != suffix.lower(), name


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1]
