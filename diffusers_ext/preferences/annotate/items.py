"""What is to be judged: prompts, each with its candidate images, read from a folder.

The folder holds one of these tables, JSONL or a JSON list; names of images are relative to the folder:

    {"id": "0001", "prompt": "a red circle", "images": ["0001/0.png", "0001/1.png"]}     or "generations" for "images"
    {"file_name": "0001/0.png", "prompt": "a red circle"}                                or "text" for "prompt"

The second form is one image a line; images of the same prompt are judged together. Or it is what `diffusers-ext rerank`
wrote: then every finished candidate of a prompt is judged, with no regard to its score; a prompt that was drawn twice is
judged twice. Rankings already in such a file are left where they are: nobody who judges shall see them.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...data.pictures import Examined, examine_all, examined
from ...errors import InputError
from ...lines import parse_json, read_text, split_lines
from ..rankings import RankedPrompt, check_ids, from_record

TABLES = (
    "candidates.jsonl",
    "candidates.json",
    "rankings.jsonl",
    "prompts.jsonl",
    "prompts.json",
    "metadata.jsonl",
    "scores.json",
)
MEDIA = {  # what browsers show, by Pillow's name of the format; SVG is left out, as it can carry scripts
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG of several views, as phones write it
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
}
SHOWN_AS = "PNG, JPEG, WebP, GIF, AVIF or BMP"
MOST = 256  # images of one prompt; beyond, nobody could rank them
SHOWN = 200  # problems named in a message


def read_items(folder: str | Path) -> list[RankedPrompt]:
    """Read the prompts of a folder and their images, without rankings, in the order of its table.

    Every image is decoded. Raises InputError, naming file and line, where the table cannot be read, an id occurs twice, or
    images are missing, damaged, none that a browser shows, or outside the folder: all of them at once.
    """
    folder = Path(folder)
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is None:
        raise InputError(f"{folder}: holds none of {', '.join(TABLES)}; write one line per prompt or per image")
    rows = _rows(table)
    records = [(_record(row), origin) for origin, row in rows if "file_name" not in row]
    records += _grouped([(origin, row) for origin, row in rows if "file_name" in row])
    items = [from_record(record, folder, origin) for record, origin in _with_ids(records)]
    check_ids(items)
    _check_images(items, folder)
    return items


def identity(prompt: str, *images: str) -> str:
    """Return the id of a prompt that was given none: a function of its text, so that it stays when lines are added.

    images: their names tell a prompt apart from earlier ones with the same text.
    """
    return blake2b("\0".join((prompt, *images)).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _with_ids(records: list[tuple[dict, str]]) -> list[tuple[dict, str]]:
    """Give an id to each prompt that has none."""
    named: list[tuple[dict, str]] = []
    seen: set[str] = set()
    for record, origin in records:
        prompt, images = record["prompt"], record["images"]
        if "id" not in record and isinstance(prompt, str):
            names = [str(image) for image in images] if isinstance(images, list) and prompt in seen else []
            record = {**record, "id": identity(prompt, *names)}
            seen.add(prompt)
        named.append((record, origin))
    return named


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
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
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
    """Return a line of the first form as `preferences.rankings` has it."""
    given = {"images": row.get("images", row.get("generations")), "prompt": row.get("prompt", row.get("text"))}
    return {**row, **given, "rankings": []}


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
    inside = {image: Path(str(image)).resolve().is_relative_to(root) for item in items for image in item.images}
    looks = examine_all([image for image, is_inside in inside.items() if is_inside])
    for item in items:
        if len(item.images) > MOST:
            problems.append(f"{item.origin}: {len(item.images)} images; at most {MOST} can be compared")
        faults = {image: _problem(looks.get(image), root) for image in item.images}
        problems += [f"{item.origin}: {image}: {fault}" for image, fault in faults.items() if fault]
        if len(set(item.images)) < len(item.images):
            problems.append(f"{item.origin}: names an image twice")
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError("\n".join([*problems[:SHOWN]]) + more)


def _problem(look: Examined | None, root: Path) -> str | None:
    if look is None:
        return f"lies outside {root}; copy it in"
    if look.fault:
        return look.fault
    return None if look.format in MEDIA else f"{look.format}, which browsers do not show; convert it to {SHOWN_AS}"


def media_type(image: Path) -> str | None:
    """Return how a browser is told to show an image as it is now; None where it is missing or damaged."""
    return MEDIA.get(examined(image).format)
