"""What is checked of options before anything is loaded: values, what would be ignored, and folders to write."""

import errno
import math
import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .declarations import LARGEST, Declared, Needed, declared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WRITE_NOTHING = ("dry_run", "self_test")  # options under which no output is written
HOME = re.compile(r"(?<=[:=@])~(?=/)")  # inside a reference, such as timm:~/model


def check_declared(options: "DataclassInstance", given: Container[str] = ()) -> None:
    """Raise InputError for the first option whose declaration refuses its value.

    options: a dataclass of `option`s. given: names that were given even if their values are the defaults.
    """
    known = declared(type(options))
    for name, declaration in known.items():
        fault = fault_of(declaration, getattr(options, name))
        if fault:
            raise InputError(f"--{name} {fault}")
    check_used(options, {name: declaration.requires for name, declaration in known.items() if declaration.requires})
    for declaration in known.values():
        if getattr(options, declaration.name) != declaration.default or declaration.name in given:
            _check_below(options, declaration)
    if not any(getattr(options, name, False) for name in WRITE_NOTHING):
        _check_outputs(options, known)


def fault_of(declaration: Declared, value: Any) -> str | None:
    """Say what is wrong with a value of the right type, None if nothing is; of a list, with its first wrong item."""
    if value == declaration.default:
        return None
    for item in value if isinstance(value, list) else [value]:
        fault = None
        if isinstance(item, str):
            fault = _text_fault(declaration, item)
        elif isinstance(item, (int, float)) and declaration.kind is not bool:
            fault = _number_fault(declaration, item)
        if fault:
            return fault
    return None


def not_a_number(declaration: Declared, word: str) -> str:
    """Say what a word must be that is no number, or none of the kind."""
    kind = "a whole number" if declaration.kind is int else "a number"
    return f"must be {kind}, {declaration.limits}, got {shown(word)}{_remedy(declaration)}"


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, not endless, and printable anywhere."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number_fault(declaration: Declared, value: float) -> str | None:
    if value in declaration.limits:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, {declaration.limits}, got {value}{_remedy(declaration)}"
    if abs(value) > LARGEST:
        return "is too large: numbers here are below 2**63"
    return f"must {declaration.limits.rule}, got {value}{_remedy(declaration)}"


def _remedy(declaration: Declared) -> str:
    return f"; {declaration.instead}" if declaration.instead else ""


def _text_fault(declaration: Declared, value: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"must be text in UTF-8, got {shown(value)}"
    if "\0" in value:
        return f"must be text without zero bytes, got {shown(value)}"
    if not value.strip() and not declaration.blank:
        return "is empty: give a value, or leave it out"
    if declaration.path == "read" and _too_long(value):
        return f"must be the name of a file or a folder, which this is too long for: {shown(value)}"
    if declaration.choices and value not in declaration.choices:
        return f"must be one of {', '.join(map(str, declaration.choices))}, got {shown(value)}"
    return None


def _too_long(value: str) -> bool:
    try:
        os.stat(value)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def check_used(options: "DataclassInstance", used_by: Mapping[str, Needed], **found: str) -> None:
    """Raise InputError for an option that was given though nothing would read it.

    One that is its default counts as not given, and 0 asks for nothing. used_by: of such an option, the other options
    that it requires; see `option`. found: values to compare instead of an option's own, such as the kind of a file.
    """
    defaults = {name: declaration.default for name, declaration in declared(type(options)).items()}
    for name, needed in used_by.items():
        value = getattr(options, name)
        if value != defaults[name] and (isinstance(value, bool) or value != 0):
            for other, wanted in needed.items():
                _check_needed(name, other, wanted, found.get(other, getattr(options, other)))


def _check_needed(name: str, other: str, wanted: tuple | bool, value: Any) -> None:
    if isinstance(wanted, tuple) and value not in wanted:
        raise InputError(f"--{name} is for --{other} {' or '.join(wanted)}; {value} would ignore it: leave it out")
    if wanted is True and not value:
        raise InputError(f"--{name} is for --{other}, without which nothing reads it: give both, or neither")
    if wanted is False and value:
        given = f"--{other}" if value is True else f"--{other} {shown(value)}"
        raise InputError(f"--{name} is ignored beside {given}: leave one of them out")


def _check_below(options: "DataclassInstance", declaration: Declared) -> None:
    """Compare two numbers, where there are both and the first is read."""
    value, limit = getattr(options, declaration.name), getattr(options, declaration.below or "", None)
    if None in (value, limit) or value < limit:
        return
    if _is_read(options, declaration):
        raise InputError(f"--{declaration.name} {value} must be below --{declaration.below} {limit}")


def _is_read(options: "DataclassInstance", declaration: Declared) -> bool:
    """Whether anything reads an option beside the others."""
    return all(
        getattr(options, other) in wanted if isinstance(wanted, tuple) else bool(getattr(options, other)) is wanted
        for other, wanted in declaration.requires.items()
    )


def _check_outputs(options: "DataclassInstance", known: Mapping[str, Declared]) -> None:
    for name, declaration in known.items():
        path = getattr(options, name)
        if declaration.path in ("folder", "file") and path is not None and _is_read(options, declaration):
            check_writable(name, path, declaration.path == "folder")


def check_writable(name: str, path: str | Path, folder: bool) -> None:
    """Raise InputError, naming the option, unless a folder or a file can be written there."""
    place = Path(path)
    fault = _folder_fault(place) if folder else _file_fault(place)
    if fault:
        raise InputError(f"--{name} {shown_path(place)}: {fault}; name another")


def _folder_fault(place: Path) -> str | None:
    """Why no files can be written into a folder, which need not be there yet; None if they can."""
    try:
        os.stat(place / ("x" * 64))  # about as long as names of a run's own files
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "its name is too long"
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"it cannot be written ({error.strerror})"
    there = next(parent for parent in (place, *place.absolute().parents) if os.path.lexists(parent))
    if not there.is_dir():
        return "it is a file, not a folder" if there == place else f"{shown_path(there)} is a file, not a folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{shown_path(there)} cannot be written, for want of permission"
    return None


def _file_fault(place: Path) -> str | None:
    """Why a file cannot be written; None if it can."""
    if len(os.fsencode(place.name)) > 240:  # 255, less what the name of a file that is not whole yet adds
        return "its name is too long"
    fault = _folder_fault(place.parent)
    if fault:
        return f"of its folder, {fault}"
    if place.is_dir():
        return "it is a folder, not a file"
    if place.exists() and not os.access(place, os.W_OK):
        return "it cannot be written, for want of permission"
    return None


def shown_path(path: Path) -> str:
    """A path as a message shows it: its beginning, where it is endless."""
    text = str(path)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def expanded(declaration: Declared, value: Any) -> Any:
    """Put the home folder in place of ~ where an option names files: at the start, and inside a reference."""
    if declaration.path is None:
        return value
    if isinstance(value, list):
        return [expanded(declaration, item) for item in value]
    return HOME.sub(str(Path.home()), os.path.expanduser(value)) if isinstance(value, str) else value


def check_alone(options: "DataclassInstance", name: str) -> None:
    """Raise InputError for any option given beside one that reads no other."""
    for other, declaration in declared(type(options)).items():
        if other != name and getattr(options, other) != declaration.default:
            raise InputError(f"--{other} is ignored beside --{name}, which goes alone: leave one of them out")
