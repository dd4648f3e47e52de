"""Prompts from a file, one per row, in its order.

prompts.txt            a prompt a line
prompts.json           a list of prompts, or of objects with a field "prompt"
prompts.jsonl .csv     rows with a field "prompt"; other fields come along
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..lines import parse_json, read_lines, read_text
from .tables import records


@dataclass(frozen=True)
class Prompt:
    """A prompt, its place in the file, from 0, where that is, and the fields of its row."""

    text: str
    index: int
    origin: str
    fields: dict[str, Any]


def read_prompts(path: str | Path, field: str = "prompt") -> list[Prompt]:
    """Return the prompts of a file, without the spaces around them.

    Raises InputError, naming file and row, where a prompt is missing, empty or no text.
    """
    path = Path(path)
    prompts: list[Prompt] = []
    if not path.is_file():
        raise InputError(f"{path}: no such file of prompts")
    if path.suffix == ".txt" and field != "prompt":
        raise InputError(
            f"--prompt_field {field}: {path} is a list of prompts, a line each, without fields; leave it out"
        )
    for origin, values in _values(path):
        values = {field: values} if isinstance(values, str) else values
        text = values.get(field) if isinstance(values, dict) else None
        if not isinstance(text, str):
            held = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise InputError(f"{origin}: no text under '{field}'; it has {held or 'nothing'}; see --prompt_field")
        if not text.strip():
            raise InputError(f"{origin}: the prompt is empty; write one or remove the row")
        prompts.append(Prompt(text.strip(), len(prompts), origin, values))
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return prompts


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (origin, string or object) of each row."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".csv", ".tsv"):
        yield from records(path)
        return
    if suffix not in (".txt", ".json"):
        raise InputError(f"{path}: prompts are a .txt, .json, .jsonl or .csv; convert it")
    if suffix == ".txt":
        yield from ((f"{path}:{number}", line) for number, line in enumerate(read_lines(path), 1))
        return
    items = parse_json(read_text(path), path)
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a JSON list of prompts, got a {type(items).__name__}")
    yield from ((f"{path}: item {n}", item) for n, item in enumerate(items))


def without_duplicates(prompts: list[Prompt], policy: str) -> list[Prompt]:
    """Return the prompts, of those that differ in case and spaces at most the first alone, as the policy says.

    "drop": leave later ones out, "keep": return all, "refuse": raise InputError naming the first pair.
    """
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        earlier = first.setdefault(" ".join(prompt.text.casefold().split()), prompt)
        if policy == "refuse" and earlier is not prompt:
            raise InputError(f"{prompt.origin}: the same prompt as {earlier.origin}; remove one, or --duplicates drop")
    return prompts if policy == "keep" else list(first.values())
