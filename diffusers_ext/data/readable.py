"""Whether pictures can be decoded: all that cannot, found in one pass, before anything expensive is done with the others."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..errors import InputError
from ..rewards.reward_inputs import check_image
from .files import File, rgb
from .names import reason

SMALL = 32  # pixels that are enough to see whether a JPEG is whole: all of it is read, little is computed
SHOWN = 20  # files that a message names


def check_readable(files: Sequence[File], workers: int = 4) -> None:
    """Decode every file; InputError names all that cannot be decoded, and why."""
    with ThreadPoolExecutor(workers) as pool:  # decoders release the interpreter
        faults = [fault for fault in pool.map(unreadable, files) if fault]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        head = f"{len(faults)} of {len(files)} pictures cannot be read; fix or remove them:"
        raise InputError("\n  ".join([head, *faults[:SHOWN], *more]))


def unreadable(file: File) -> str | None:
    """Return why a file is no picture that can be used; None for one that is."""
    try:
        with file.open("rb") as stream:
            check_image(rgb(stream, SMALL))
    except InputError as error:
        return f"{file}: {error}"
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        return f"{file}: cannot be read ({reason(error, file.name)})"
    return None
