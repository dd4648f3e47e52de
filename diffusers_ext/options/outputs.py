"""What a command writes must not be what it reads."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError


def check_output(option: str, output: str | os.PathLike, inputs: Iterable[str | os.PathLike | None]) -> None:
    """Raise InputError if the output is one of the inputs, by whichever name, link or spelling.

    option: what the output is called, for the message. inputs: None stands for one that was not given.
    """
    for given in inputs:
        if given is not None and same_file(output, given):
            raise InputError(f"{option} {output}: is the input {given}, which it would replace; name another file")


def same_file(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Say whether two paths are one file: through links, relative names, and a file system that ignores case."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet
        return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
