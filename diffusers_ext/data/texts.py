"""Prompts from a file, one per row, in its order.

prompts.txt            a prompt a line
prompts.json           a list of prompts, or of objects with a field "prompt"
prompts.jsonl .csv     rows with a field "prompt"; other fields come along
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .rows import records

POLICIES = ("drop", "keep", "refuse")  # what to do with duplicates


def read_prompts(path: str | Path, field: str = "prompt") -> list[dict[str, Any]]:
    """Return the rows of a file, each with its text under "prompt", its place in the file under "index", from 0, and where
    it stands under "origin", beside the fields it has.

    Raises InputError, naming file and row, where a prompt is missing, empty or no text.
    """
    path, rows = Path(path), []
    if not path.is_file():
        raise InputError(f"{path}: no such file of prompts")
    for origin, values in _values(path):
        values = {field: values} if isinstance(values, str) else values
        text = values.get(field) if isinstance(values, dict) else None
        if not isinstance(text, str):
            held = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise InputError(f"{origin}: no text under '{field}'; it has {held or 'nothing'}; see --prompt_field")
        if not text.strip():
            raise InputError(f"{origin}: the prompt is empty; write one or remove the row")
        rows.append({**values, "prompt": text.strip(), "index": len(rows), "origin": origin})
    if not rows:
        raise InputError(f"{path}: holds no prompts")
    return rows


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (origin, string or object) of each row."""
    if path.suffix in (".jsonl", ".csv"):
        yield from records(path)
        return
    if path.suffix not in (".txt", ".json"):
        raise InputError(f"{path}: prompts are a .txt, .json, .jsonl or .csv; convert it")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".txt":
            yield from ((f"{path}:{n}", line) for n, line in enumerate(text.removesuffix("\n").split("\n"), 1))
            return
        items = json.loads(text)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it in that encoding") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); mend it") from None
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a JSON list of prompts, got a {type(items).__name__}")
    yield from ((f"{path}: item {n}", item) for n, item in enumerate(items))


def without_duplicates(rows: list[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """Return the rows, of those that differ in case and spaces at most the first alone, as the policy says.

    "drop": leave later ones out, "keep": return all, "refuse": raise InputError naming the first pair.
    """
    first: dict[str, dict] = {}
    for row in rows:
        earlier = first.setdefault(" ".join(row["prompt"].casefold().split()), row)
        if policy == "refuse" and earlier is not row:
            raise InputError(
                f"{row['origin']}: the same prompt as {earlier['origin']}; remove one, or --duplicates drop"
            )
    return rows if policy == "keep" else list(first.values())
