"""How an option is declared: its default, its help, the values it may have, and what reads it.

A field that a subclass declares anew keeps what it does not state again: range, dependencies and kind of path. Nothing
here imports torch, so that `--help` answers at once.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Needed = Mapping[str, tuple | bool]  # other options, each with the values under which an option is read; see `option`
LARGEST = 2**63 - 1  # what a 64-bit integer holds


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have; a bound of None is none, an open bound is itself refused."""

    low: float | None = None
    high: float | None = None
    above: bool = False  # the lower bound is open
    below: bool = False  # the upper bound is open

    def __contains__(self, value: float) -> bool:
        if not abs(value) <= LARGEST:  # NaN too
            return False
        fits = self.low is None or (value > self.low if self.above else value >= self.low)
        return fits and (self.high is None or (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        high = f"below {self.high}" if self.below else f"up to {self.high}"
        if self.low is None and self.high is None:
            return "any number"
        if self.low is None or self.high is None:
            return low if self.high is None else high
        return f"{low} and {high}" if self.above or self.below else f"{self.low} to {self.high}"

    @property
    def rule(self) -> str:
        """What a value must do: 'be at least 1', 'lie in 0 to 1'."""
        if self.low is None or self.high is None:
            return f"be {self}"
        return f"lie {self}" if self.above else f"be {self}" if self.below else f"lie in {self}"


ANY = Range()
COUNT = Range(1)
NATURAL = Range(0)
WEIGHT = Range(0)
POSITIVE = Range(0, above=True)
SHARE = Range(0, 1)
DECAY = Range(0, 1, below=True)
SEED = Range(0)
PORT = Range(0, 65535)


def option(
    default: Any,
    help: str,
    allowed: tuple | Range | None = None,
    positional: bool = False,
    *,
    instead: str | None = None,
    requires: Needed | None = None,
    below: str | None = None,
    path: str | None = None,
    blank: bool | None = None,
) -> Any:
    """Declare one option: its default, the sentence `--help` prints, and the values allowed.

    allowed: the choices, or the range of a number; every number has one.
    positional: given by its place, without the flag.
    instead: what to write where other programs take -1 or 0; ends the message of a number outside the range.
    requires: options without which nothing reads this one: each with a tuple of the values under which it is read, True
    for any but None, False and 0, or False for these alone.
    below: an option that this one must be smaller than, where both are given.
    path: "read" for a file, a folder or a name that may be one; "text" for a file, or a text in its place; "folder" or
    "file" for what is written.
    blank: whether the empty text means something.
    """
    kind = {"range": allowed} if isinstance(allowed, Range) else {"choices": allowed}
    stated = {"instead": instead, "requires": requires, "below": below, "path": path, "blank": blank}
    metadata = {"help": help, "choices": None, "range": None, **kind, "positional": positional, **stated}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(title: str) -> Callable[[type], type]:
    """Name the section of `--help` in which the fields declared by this class stand."""

    def mark(cls: type) -> type:
        cls._groups = dict.fromkeys(inspect.get_annotations(cls), title)  # type: ignore[attr-defined]
        return cls

    return mark


def depends(names: Iterable[str], **needed: tuple | bool) -> Callable[[type], type]:
    """State for a class what its inherited options require; see `option`."""
    names = tuple(names)

    def mark(cls: type) -> type:
        cls._requires = {**cls.__dict__.get("_requires", {}), **dict.fromkeys(names, needed)}  # type: ignore[attr-defined]
        return cls

    return mark


@dataclass(frozen=True)
class Declared:
    """One option as the whole class declares it."""

    name: str
    help: str
    default: Any
    kind: type
    optional: bool
    many: bool
    positional: bool
    title: str
    choices: tuple | None
    range: Range | None
    instead: str | None
    requires: Needed
    below: str | None
    path: str | None
    blank: bool

    @property
    def limits(self) -> Range:
        """The range of a number; ANY where none is declared."""
        return self.range or ANY


def declared(cls: type) -> dict[str, Declared]:
    """Return the options of a dataclass by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: _declared(cls, field, hints[field.name]) for field in dataclasses.fields(cls)}


def sections(cls: type) -> list[str]:
    """Return the titles of `--help`, those of the class itself first, and what it shares with other classes last.

    >>> from diffusers_ext.options import TrainingOptions
    >>> sections(TrainingOptions)
    ['options', 'optimiser', 'run']
    """
    titles = [title for base in cls.__mro__ for title in base.__dict__.get("_groups", {}).values()]
    return list(dict.fromkeys(["options", *titles]))


def _declared(cls: type, field: dataclasses.Field, hint: Any) -> Declared:
    stated = _stated(cls, field.name)
    kind, optional, many = _unpack(hint)
    return Declared(
        name=field.name,
        help=field.metadata["help"],
        default=field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
        kind=kind,
        optional=optional,
        many=many,
        positional=field.metadata["positional"],
        title=_inherited(cls, "_groups").get(field.name, "options"),
        choices=stated.get("choices"),
        range=stated.get("range"),
        instead=stated.get("instead"),
        requires={**stated.get("requires", {}), **_inherited(cls, "_requires").get(field.name, {})},
        below=stated.get("below"),
        path=stated.get("path"),
        blank=stated.get("blank", False),
    )


def _stated(cls: type, name: str) -> dict[str, Any]:
    """What the nearest class states of an option, item by item."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        field = base.__dict__.get("__dataclass_fields__", {}).get(name)
        found |= {key: value for key, value in (field.metadata if field else {}).items() if value is not None}
    return found


def _inherited(cls: type, name: str) -> dict[str, Any]:
    """What a class and all its bases state under a name, the nearest last."""
    return {key: value for base in reversed(cls.__mro__) for key, value in base.__dict__.get(name, {}).items()}


def _unpack(hint: Any) -> tuple[type, bool, bool]:
    """Split a type hint into (type, may be None, is a list)."""
    optional = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = True
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], optional, True
    return hint, optional, False
