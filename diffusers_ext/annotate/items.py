"""What is to be judged: prompts, each with its candidate images, read from a folder.

The folder holds one of these tables, JSONL or a JSON list; names of images are relative to the folder:

    {"id": "0001", "prompt": "a red circle", "images": ["0001/0.png", "0001/1.png"]}     or "generations" for "images"
    {"file_name": "0001/0.png", "prompt": "a red circle"}                                or "text" for "prompt"

The second form is one image a line; images of the same prompt are judged together. Or it is what `diffusers-ext rerank`
wrote: then every finished candidate of a prompt is judged, with no regard to its score. Rankings already in such a file are
left where they are: nobody who judges shall see them.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..data.rankings import RankedPrompt, check_ids, from_record
from ..errors import InputError
from ..lines import parse_json, read_text, split_lines

TABLES = (
    "candidates.jsonl",
    "candidates.json",
    "rankings.jsonl",
    "prompts.jsonl",
    "prompts.json",
    "metadata.jsonl",
    "scores.json",
)
PICTURES = {  # what browsers show; SVG is left out, as it can carry scripts
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
}
MOST = 26  # images of one prompt: as many as there are letters to name them
SHOWN = 5  # problems named in a message


def read_items(folder: str | Path) -> list[RankedPrompt]:
    """Read the prompts of a folder and their images, without rankings, in the order of its table.

    Raises InputError, naming file and line, where the table cannot be read, an id occurs twice, or an image is missing,
    is none that a browser shows, or lies outside the folder.
    """
    folder = Path(folder)
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is None:
        raise InputError(f"{folder}: holds none of {', '.join(TABLES)}; write one line per prompt or per image")
    rows = _rows(table)
    records = [(_record(row), origin) for origin, row in rows if "file_name" not in row]
    records += _grouped([(origin, row) for origin, row in rows if "file_name" in row])
    items = [from_record(record, folder, origin) for record, origin in records]
    check_ids(items)
    _check_images(items, folder)
    return items


def identity(prompt: str) -> str:
    """Return the id of a prompt that was given none: a function of its text, so that it stays when lines are added."""
    return blake2b(prompt.encode(), digest_size=6).hexdigest()


def _rows(table: Path) -> list[tuple[str, dict]]:
    """Return (origin, object) of each line of a JSONL file or each entry of a JSON list."""
    try:
        text = read_text(table)
        if table.suffix == ".jsonl":
            lines = [(f"{table}:{number}", line) for number, line in enumerate(split_lines(text), 1) if line.strip()]
            rows = [(origin, parse_json(line, origin)) for origin, line in lines]
        else:
            read = parse_json(text, table)
            read = _of_rerank(read) if isinstance(read, dict) and "prompts" in read else read
            rows = [(f"{table}[{at}]", row) for at, row in enumerate(read)]
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{table}: cannot be read ({error}); give UTF-8 JSONL, or a JSON list of objects") from None
    bad = next((origin for origin, row in rows if not isinstance(row, dict)), None)
    if bad or not rows:
        raise InputError(f"{bad or table}: expected objects with a prompt and images")
    return rows


def _of_rerank(record: dict) -> list[dict]:
    """Return the finished pictures of each prompt that `diffusers-ext rerank` drew, in the order of their numbers."""
    drawn = [
        (each["prompt"], sorted((row for row in each["candidates"] if row["image"]), key=lambda row: row["number"]))
        for each in record["prompts"]
    ]
    return [{"prompt": prompt, "images": [row["image"] for row in rows]} for prompt, rows in drawn]


def _record(row: dict) -> dict:
    """Return a line of the first form as `data.rankings` has it."""
    given = {"images": row.get("images", row.get("generations")), "prompt": row.get("prompt", row.get("text"))}
    named = {"id": identity(given["prompt"])} if "id" not in row and isinstance(given["prompt"], str) else {}
    return {**row, **given, **named, "rankings": []}


def _grouped(rows: list[tuple[str, dict]]) -> list[tuple[dict, str]]:
    """Join lines of one image each by their prompt, in order of its first line."""
    groups: dict[Any, tuple[dict, str]] = {}
    for origin, row in rows:
        prompt, name = row.get("prompt", row.get("text")), row["file_name"]
        if not isinstance(prompt, str) or not isinstance(name, str):
            raise InputError(f'{origin}: expected {{"file_name": text, "prompt": text}}, got {str(row)[:80]}')
        record, _ = groups.setdefault(prompt, (_record({"prompt": prompt, "images": []}), origin))
        record["images"].append(name)
    return list(groups.values())


def _check_images(items: list[RankedPrompt], folder: Path) -> None:
    """Raise InputError naming images that cannot be shown, before anybody starts."""
    root, problems = folder.resolve(), []
    for item in items:
        if len(item.images) > MOST:
            problems.append(f"{item.origin}: {len(item.images)} images; at most {MOST} can be compared")
        problems += [f"{item.origin}: {image}: {why}" for image in item.images if (why := _problem(image, root))]
        if len(set(item.images)) < len(item.images):
            problems.append(f"{item.origin}: names an image twice")
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError("\n".join(problems[:SHOWN]) + more)


def _problem(image: Path, root: Path) -> str | None:
    if image.suffix.lower() not in PICTURES:
        return f"not a picture that browsers show; give {', '.join(PICTURES)}"
    if not image.resolve().is_relative_to(root):
        return f"lies outside {root}; copy it in"
    return None if image.is_file() else "no such file"
