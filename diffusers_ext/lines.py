r"""Text files as people and programs write them: their encoding, their lines, their JSON. Needs no torch.

A line ends at \n, \r\n or \r and nowhere else: str.splitlines() also splits at U+2028, U+0085, \x0b, \x0c and
\x1c to \x1e, which may stand inside a caption.

Encodings: a byte order mark says UTF-8, UTF-16 or UTF-32; without one a text is UTF-8. Other text is never guessed, as
the wrong guess spoils captions silently: it is refused with the encoding that it looks like.
"""

import codecs
import json
from pathlib import Path
from typing import Any

from .errors import InputError

# The mark of UTF-32 begins with that of UTF-16, so it comes first.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode(data: bytes, origin: str | Path) -> str:
    """Return a text without its byte order mark; InputError names the line that cannot be read and the remedy.

    >>> decode('é'.encode('utf-16'), 'a.txt')
    'é'
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = len(split_lines(data[: len(mark) + error.start].decode(encoding, "replace") + "."))
        likely = _likely(data)
        raise InputError(
            f"{origin}:{line}: not UTF-8; it looks like {likely}. Save it as UTF-8: iconv -f {likely} -t UTF-8 FILE"
        ) from None
    if "\0" in text:
        line = len(split_lines(text[: text.index("\0") + 1]))
        raise InputError(f"{origin}:{line}: a NUL byte: UTF-16 without a byte order mark, or no text; save it as UTF-8")
    return text


def _likely(data: bytes) -> str:
    """Name an encoding in which the bytes are a text, for the message alone."""
    if data.count(0) > len(data) // 4:
        return "UTF-16"
    for name in ("CP1252", "GB18030"):
        try:
            data.decode(name)
            return name
        except UnicodeDecodeError:
            continue
    return "LATIN1"


def read_text(path: str | Path) -> str:
    """Return what a text file holds, as `decode` does; InputError also where it cannot be read."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    return decode(data, path)


def split_lines(text: str) -> list[str]:
    """Return the lines of a text without their ends; the end of the last line begins no other.

    >>> split_lines('a\\nb\\u2028c\\n')
    ['a', 'b\\u2028c']
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file that a person may have written; InputError as of `read_text`."""
    return split_lines(read_text(path))


def journal_lines(path: str | Path) -> list[str]:
    """Return the lines of a file that this package appends to, none where there is no file.

    A kill may cut the last one inside a character, which is then replaced: such a line is no JSON either way.
    """
    path = Path(path)
    return split_lines(path.read_bytes().decode("utf-8", "replace")) if path.exists() else []


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; ValueError where it gives one key two values, of which Python alone would lose the first."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:  # NaN differs from itself, but stands once
            raise ValueError(f"two values under {key!r}")
        found[key] = value
    return found


def parse_json(text: str, origin: str | Path) -> Any:
    """Return the value that a JSON text holds; InputError names `origin` and says why where it holds none."""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
        if "\\ud" in text.lower():  # half a surrogate pair is valid JSON, but no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        where = f"{origin}:{error.lineno}" if "\n" in text else origin
        raise InputError(f"{where}: not valid JSON ({error.msg}); fix or remove it") from None
    except RecursionError:
        raise InputError(f"{origin}: JSON nested too deeply; fix or remove it") from None
    except ValueError as error:  # a number of thousands of digits, half a surrogate pair
        raise InputError(f"{origin}: JSON that cannot be read ({error}); fix or remove it") from None
    return value
