"""From words and configuration files to an options dataclass.

`--a_b` and `--a-b` both work, a boolean `x` has `--x` and `--no-x`, and `--config run.json` sets any of them (the command
line wins; unknown keys are refused). Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import difflib
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .checks import check_declared, expanded, fault_of, not_a_number, shown
from .declarations import Declared, declared, sections

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
WHOLE = re.compile(r"[+-]?[0-9]{1,40}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Parser(argparse.ArgumentParser):
    """Ends the program with one line that says why."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.splitlines()).encode("utf-8", "backslashreplace").decode()
        self.exit(2, f"error: {text if len(text) < 800 else text[:800] + '...'} (see --help)\n")


def parse(cls: type[T], argv: list[str] | None = None, description: str | None = None, program: str | None = None) -> T:
    """Read an options dataclass from the command line.

    What cannot be read ends the program with one line that says why. Raises InputError for a value that the option's
    declaration refuses, for an option that nothing would read, and for an output that cannot be written.
    """
    known = declared(cls)
    parser = _parser(cls, known, description, program)
    words = _plain_words(parser, known, sys.argv[1:] if argv is None else argv)
    found, rest = parser.parse_known_args(words)
    given = vars(found)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}{_nearest(rest[0], known)}")
    config = given.pop("config", None)
    try:
        values = {**(_read_config(config, known) if config is not None else {}), **_converted(given, known)}
    except ValueError as error:
        parser.error(str(error))
    options = cls(**{name: expanded(known[name], value) for name, value in values.items()})
    check_declared(options, given)
    return options


def _parser(cls: type, known: dict[str, Declared], description: str | None, program: str | None) -> Parser:
    places = [f" [{name.upper()}]" for name, declaration in known.items() if declaration.positional]
    parser = Parser(
        prog=program,
        usage=f"%(prog)s{''.join(places)} [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="JSON file of options; the command line wins over it")
    for title in sections(cls):
        section = parser if title == "options" else parser.add_argument_group(title)
        for declaration in known.values():
            if declaration.title == title:
                _add_argument(section, declaration)
    return parser


def _add_argument(section: Any, declaration: Declared) -> None:
    name = declaration.name
    # argparse.SUPPRESS: only what the user typed is returned, so that a config file can sit between it and the defaults.
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(declaration)}
    if declaration.positional:
        section.add_argument(name, nargs="*" if declaration.many else "?", metavar=name.upper(), **settings)
        return
    settings["dest"] = name
    if declaration.kind is bool:
        section.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **settings)
        return
    settings["metavar"] = declaration.kind.__name__.upper()
    if declaration.choices:
        settings |= {"choices": declaration.choices, "metavar": "{" + ",".join(map(str, declaration.choices)) + "}"}
    section.add_argument(f"--{name}", nargs="+" if declaration.many else None, **settings)


def _help(declaration: Declared) -> str:
    facts = [str(declaration.range)] if declaration.range else []
    if declaration.default is not None and declaration.default != []:
        facts.append(f"default: {declaration.default}")
    return (declaration.help + (f" ({'; '.join(facts)})" if facts else "")).replace("%", "%%")


def _plain_words(parser: Parser, known: dict[str, Declared], words: list[str]) -> list[str]:
    """Write words as argparse reads them: a switch without its value, a negative number with its option."""
    plain: list[str] = []
    left = list(words)
    while left:
        typed, separator, value = left.pop(0).partition("=")
        name = _flag(typed, known)
        word = f"{name}{separator}{value}"
        declaration = known.get(name[2:]) if name.startswith("--") else None
        if declaration and declaration.kind is bool and not declaration.positional:
            if not separator and left and left[0].lower() in ("true", "false"):
                separator, value = "=", left.pop(0)
            plain.append(_switch(parser, name, value) if separator else word)
        elif declaration and not separator and left and declaration.kind in (int, float) and _negative(left[0]):
            plain.extend([word, left.pop(0)] if declaration.many else [f"{word}={left.pop(0)}"])
        else:
            plain.append(word)
    return plain


def _flag(typed: str, known: dict[str, Declared]) -> str:
    """Return an option as `--help` shows it, --a_b or --no-a_b, whether it was typed with underscores or dashes."""
    name = typed[2:].replace("-", "_") if typed.startswith("--") else ""
    if name in known:
        return f"--{name}"
    switch = known.get(name.removeprefix("no_"))
    return f"--no-{switch.name}" if switch and switch.kind is bool and name.startswith("no_") else typed


def _negative(word: str) -> bool:
    return word.startswith("-") and NUMBER.fullmatch(word) is not None


def _switch(parser: Parser, name: str, value: str) -> str:
    """--use_ema=false is --no-use_ema."""
    if value.lower() in YES:
        return name
    if value.lower() in NO:
        return f"--no-{name[2:]}"
    parser.error(f"{name} is a switch: write {name} or --no-{name[2:]}, not {shown(value)}")


def _nearest(word: str, known: dict[str, Declared]) -> str:
    """Name the option that an unknown one may have meant."""
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    if not word.startswith("-"):
        return ""
    switches = [f"no_{option}" for option, declaration in known.items() if declaration.kind is bool]
    near = difflib.get_close_matches(name, [*known, *switches, "config"], 1)
    return f"; did you mean --{near[0]}?" if near else ""


def _converted(given: dict[str, Any], known: dict[str, Declared]) -> dict[str, Any]:
    """Turn the words of numbers into numbers; ValueError for one that is none."""
    values = dict(given)
    for name, value in given.items():
        declaration = known[name]
        if declaration.kind in (int, float):
            values[name] = (
                [_number(declaration, word) for word in value] if declaration.many else _number(declaration, value)
            )
    return values


def _number(declaration: Declared, word: str) -> int | float:
    pattern = WHOLE if declaration.kind is int else NUMBER
    if not pattern.fullmatch(word.strip()):
        raise ValueError(f"--{declaration.name} {not_a_number(declaration, word)}")
    return int(word) if declaration.kind is int else float(word)


def _read_config(path: str, known: dict[str, Declared]) -> dict[str, Any]:
    """Read a file of options; ValueError names the file and what is wrong."""
    values = _read_json(path)
    # options.json of a run folder wraps them with the command; it can be given back as it is.
    values = values.get("options", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected a JSON object of options")
    unknown = sorted(set(values) - set(known))
    if unknown:
        names = ", ".join(shown(name)[1:-1] for name in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise ValueError(f"--config {path}: unknown option {names}{_nearest('--' + unknown[0], known)}; see --help")
    return {name: _from_json(path, known[name], value) for name, value in values.items()}


def _read_json(path: str) -> Any:
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise ValueError(f"--config {path}: is not text in UTF-8; save it as such") from None
    except OSError as error:
        raise ValueError(f"--config {path}: cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise ValueError(f"--config {path}: is nested too deeply; expected a JSON object of options") from None
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} stands there twice")
    return found


def _from_json(path: str, declaration: Declared, value: Any, item: bool = False) -> Any:
    """Return a value of a configuration file in the option's type; ValueError unless it has it."""
    name, kind = declaration.name, declaration.kind
    if value is None and declaration.optional and not item:
        return None
    if declaration.many and not item:
        if not isinstance(value, list) or not value:
            raise ValueError(f"--config {path}: {name} must be a list, of one value at least")
        return [_from_json(path, declaration, part, item=True) for part in value]
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise ValueError(f"--config {path}: {name} must be {kind.__name__}, got {shown(value)}")
    fault = fault_of(declaration, value)
    if fault:
        raise ValueError(f"--config {path}: {name} {fault}")
    return float(value) if kind is float else value
