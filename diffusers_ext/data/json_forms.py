"""One JSON object that holds all rows of a table, in the forms in which it can only mean one thing.

{"data": [{"file_name": "0.png", "text": "a disc"}, ...]}      a list of rows, other keys beside it or not
{"0.png": "a disc", ...}   {"0.png": {"text": "a disc"}, ...}  by name of picture
{"file_name": ["0.png", ...], "text": ["a disc", ...]}         by column
{"file_name": {"0": "0.png"}, "text": {"0": "a disc"}}         as pandas writes: by column, by row, or split
"""

from typing import Any

from ..errors import InputError
from .names import is_picture

LISTS = ("annotations", "data", "dataset", "entries", "examples", "images", "items", "records", "rows", "samples")
NAMES = {"caption", "file_name", "image", "label", "prompt", "text"}  # of columns, one of which each row has
WANTED = 'one object that is no row; write a list of rows, or a row a line: {"file_name": "images/0.png", "text": "a caption"}'

Placed = list[tuple[str, Any]]  # (place in the file, row)


def rows_in(whole: dict[str, Any], origin: str) -> Placed | None:
    """Return the rows that an object holds; None where it is a row itself. InputError where that cannot be told."""
    texts = {name: value for name, value in whole.items() if isinstance(value, str) and not is_picture(name)}
    if found := _listed(whole, LISTS):
        return found
    if texts and (any(map(is_picture, texts.values())) or not texts.keys().isdisjoint(NAMES)):
        return None
    if not any(isinstance(value, (list, dict, str)) for value in whole.values()):
        return None
    found = _listed(whole, tuple(whole)[:1] if len(whole) == 1 else ()) or _named(whole) or _columns(whole)
    if not found:
        held = ", ".join(list(whole)[:5]) + (f" and {len(whole) - 5} more" if len(whole) > 5 else "")
        raise InputError(f"{origin}: {WANTED}; it has {held}")
    return found


def _listed(whole: dict[str, Any], keys: tuple[str, ...]) -> Placed | None:
    """The only list of objects, under one of these keys."""
    lists = [key for key, value in whole.items() if isinstance(value, list) and value and _all(value, dict)]
    if len(lists) != 1 or lists[0] not in keys:
        return None
    return [(f"['{lists[0]}'][{place}]", row) for place, row in enumerate(whole[lists[0]])]


def _named(whole: dict[str, Any]) -> Placed | None:
    """Rows by the names of their pictures, or by numbers."""
    if all(map(is_picture, whole)) and not any(map(is_picture, filter(_is_text, whole.values()))):
        rows = {
            name: {"file_name": name, **(value if isinstance(value, dict) else {"text": value})}
            for name, value in whole.items()
        }
        return [(f"['{name}']", row) for name, row in rows.items()]
    if all(map(str.isdigit, whole)) and _all(whole.values(), dict):
        return [(f"['{number}']", row) for number, row in whole.items()]
    return None


def _columns(whole: dict[str, Any]) -> Placed | None:
    """Rows of columns: lists of one length, or objects of the same keys; or rows without names beside their columns'."""
    values = list(whole.values())
    names, rows = whole.get("columns"), whole.get("data")
    if isinstance(names, list) and isinstance(rows, list) and _all(names, str) and _all(rows, list):
        same = all(len(row) == len(names) for row in rows)
        return [(f"['data'][{at}]", dict(zip(names, row))) for at, row in enumerate(rows)] if same else None
    if _all(values, dict) and all(value.keys() == values[0].keys() for value in values):
        numbered = [(f"[{key}]", {name: value[key] for name, value in whole.items()}) for key in values[0]]
        return numbered if all(map(str.isdigit, values[0])) and _are_rows(numbered) else None
    if _all(values, list) and len({len(value) for value in values}) == 1:
        listed = [(f"[{at}]", dict(zip(whole, row))) for at, row in enumerate(zip(*values))]
        return listed if _are_rows(listed) else None
    return None


def _are_rows(placed: Placed) -> bool:
    """Say whether no cell holds an object: where one does, the lists are not columns."""
    return not any(isinstance(value, dict) for _, row in placed for value in row.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _all(values: Any, kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)
