"""Rankings: for each prompt some images, and how people ordered them.

A rankings file is JSONL, one prompt a line; paths of images are relative to the file:

    {"id": "0001", "prompt": "a red circle", "images": ["0001/0.png", "0001/1.png", "0001/2.png"],
     "category": null, "prompt_flags": [], "split": "train",
     "rankings": [{"annotator": "ada", "ranking": [1, 3, 1],
                   "ratings": [{"overall": 6, "alignment": 7, "fidelity": 5}, null, null],
                   "issues": [[], ["limbs"], []], "time_s": 41.5, "valid": true}]}

id, prompt, images and rankings must be there, and in a ranking annotator and ranking. A lower number is better, equal
numbers are a tie, and only their order counts; null means that this person did not see the image. Ratings go from 1 to
7. A ranking that is not valid is kept and never used. Other forms are read by `ranking_formats`.

Shapes: K images of a prompt, P pairs.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.files import File
from ..errors import InputError
from ..lines import parse_json, read_lines

RATINGS = ("overall", "alignment", "fidelity")  # each from 1 to 7 (Xu et al. 2023, section 2.2)
ISSUES = ("conflict", "limbs", "unclear", "toxic", "sex", "violence")  # the keys of the released annotations
NUMBER = (int, float)
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "AVIF": ".avif", "BMP": ".bmp"}


@dataclass(frozen=True)
class Ranking:
    """One person's order of a prompt's images.

    ranking: K numbers, lower is better, equal is a tie, None is an image not seen. ratings and issues: K each, or empty
    where nobody asked. time_s: seconds it took.

    >>> Ranking('anna', (1, 2, 2)).pairs()
    array([[0, 1],
           [0, 2]])
    """

    annotator: str
    ranking: tuple[float | None, ...]
    ratings: tuple[dict[str, int] | None, ...] = ()
    issues: tuple[tuple[str, ...], ...] = ()
    time_s: float | None = None
    valid: bool = True

    def pairs(self) -> np.ndarray:
        """Return the strict pairs as (winner, loser), (P, 2) int64; ties and images not seen are in none."""
        ranks = np.array(self.ranking, dtype=float)  # None is nan, which compares as false
        return np.argwhere(ranks[:, None] < ranks[None, :])

    def tied(self) -> int:
        """Return the number of pairs given equal ranks."""
        ranks = np.array(self.ranking, dtype=float)
        return int(np.triu(ranks[:, None] == ranks[None, :], 1).sum())


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt, its K images and their rankings; origin says where it was read."""

    id: str
    prompt: str
    images: tuple[File, ...]
    rankings: tuple[Ranking, ...] = ()
    category: str | None = None
    prompt_flags: tuple[str, ...] = ()
    split: str = "train"
    origin: str = ""

    @property
    def valid(self) -> list[Ranking]:
        """The rankings to use."""
        return [ranking for ranking in self.rankings if ranking.valid]

    @property
    def people(self) -> list[str]:
        """Whose each valid ranking is: of one person's several, `group_by_prompt` names the n-th "name/n".

        A name like that counts as a further ranking only where all those before it are there: "lab/ada" is a person.
        """
        names = {ranking.annotator for ranking in self.rankings}
        return [_person(ranking.annotator, names) for ranking in self.valid]

    def pairs(self) -> np.ndarray:
        """Return the strict pairs of all valid rankings, (P, 2) int64: as often as people gave them, either way round."""
        return np.concatenate([np.empty((0, 2), np.int64), *(ranking.pairs() for ranking in self.valid)])

    def tied(self) -> int:
        """Return the number of tied pairs of all valid rankings."""
        return sum(ranking.tied() for ranking in self.valid)

    def with_ranking(self, ranking: Ranking) -> "RankedPrompt":
        """Return this prompt with one more ranking, in place of an earlier one of the same person."""
        others = tuple(each for each in self.rankings if each.annotator != ranking.annotator)
        return replace(self, rankings=(*others, ranking))


def _person(name: str, names: set[str]) -> str:
    person, slash, number = name.rpartition("/")
    if not slash or not re.fullmatch(r"[1-9][0-9]{0,3}", number) or number == "1":
        return name
    earlier = {person, *(f"{person}/{n}" for n in range(2, int(number)))}
    return person if earlier <= names else name


def read(path: str | Path) -> list[RankedPrompt]:
    """Read a rankings file.

    Raises InputError, naming file, line and field, where a line is not as above or an id occurs twice; the images
    themselves are not looked at (see `ranking_checks.check_images`).
    """
    path = Path(path)
    numbered = [(f"{path}:{number}", line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    prompts = [from_record(parse_json(line, origin), path.parent, origin) for origin, line in numbered]
    if not prompts:
        raise InputError(f"{path}: holds no rankings")
    check_ids(prompts)
    return prompts


def write(path: str | Path, prompts: Iterable[RankedPrompt]) -> Path:
    """Write a rankings file, whole or not at all, and return its path; images that are not files are copied beside it."""
    from ..cache import write_atomically  # here, as it imports torch

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(to_record(prompt, path.parent), ensure_ascii=False) + "\n" for prompt in prompts]
    write_atomically(path, "".join(lines).encode())
    return path


def from_record(values: Any, folder: Path, origin: str) -> RankedPrompt:
    """Check one line's object and return it; paths are taken from `folder`."""
    fields = _Fields(values, origin)
    names = fields.listed("images", str)
    if not names:
        raise InputError(f"{origin}: images: empty; name the prompt's images")
    remote = next((name for name in names if "://" in name), None)
    if remote:
        raise InputError(f"{origin}: images: {remote} is not a local file; download it and name the file")
    rankings = fields.listed("rankings", dict)
    return RankedPrompt(
        fields.one("id", str),
        fields.one("prompt", str),
        tuple(Path(os.path.normpath(folder / name)) for name in names),
        tuple(_ranking(each, len(names), f"{origin}: rankings[{at}]") for at, each in enumerate(rankings)),
        fields.one("category", str, None),
        tuple(fields.listed("prompt_flags", str, ())),
        fields.one("split", str, "train"),
        origin,
    )


def to_record(prompt: RankedPrompt, folder: Path) -> dict:
    """Return the object of one line of a file in `folder`."""
    rankings = [
        {
            "annotator": ranking.annotator,
            "ranking": list(ranking.ranking),
            "ratings": list(ranking.ratings),
            "issues": [list(issues) for issues in ranking.issues],
            "time_s": ranking.time_s,
            "valid": ranking.valid,
        }
        for ranking in prompt.rankings
    ]
    return {
        "id": prompt.id,
        "prompt": prompt.prompt,
        "images": [_name_from(image, folder) for image in prompt.images],
        "category": prompt.category,
        "prompt_flags": list(prompt.prompt_flags),
        "split": prompt.split,
        "rankings": rankings,
    }


def check_ids(prompts: Sequence[RankedPrompt]) -> None:
    """Raise InputError if an id, or in one prompt an annotator, occurs twice."""
    seen: dict[str, str] = {}
    for prompt in prompts:
        if prompt.id in seen:
            raise InputError(f"{prompt.origin}: id: {prompt.id!r} is also at {seen[prompt.id]}; ids must be unique")
        seen[prompt.id] = prompt.origin
        names = [ranking.annotator for ranking in prompt.rankings]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{prompt.origin}: rankings: annotator {twice!r} twice; keep one of the two")


def group_by_prompt(prompts: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    """Join entries of equal text, so that images they share are encoded once; the first one's id stays.

    Data of two images a line (HPDv2, Pick-a-Pic) compare each image several times. A ranking keeps None at images that
    its author did not see, and the n-th ranking of the same person becomes "name/n" (see `RankedPrompt.people`).
    """
    groups: dict[tuple[str, str], list[RankedPrompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.split, prompt.prompt), []).append(prompt)
    return [_join(group) if len(group) > 1 else group[0] for group in groups.values()]


def _join(group: list[RankedPrompt]) -> RankedPrompt:
    images = list(dict.fromkeys(image for prompt in group for image in prompt.images))
    place = {image: index for index, image in enumerate(images)}
    joined: list[Ranking] = []
    count: dict[str, int] = {}
    for prompt in group:
        for ranking in prompt.rankings:
            number = count[ranking.annotator] = count.get(ranking.annotator, 0) + 1
            name = ranking.annotator if number == 1 else f"{ranking.annotator}/{number}"
            at = [place[image] for image in prompt.images]
            spread: dict[str, Any] = {
                "ranking": _spread(ranking.ranking, at, len(images), None),
                "ratings": _spread(ranking.ratings, at, len(images), None),
                "issues": _spread(ranking.issues, at, len(images), ()),
            }
            joined.append(replace(ranking, annotator=name, **spread))
    return replace(group[0], images=tuple(images), rankings=tuple(joined))


def _spread(values: Sequence, at: list[int], count: int, empty: Any) -> tuple:
    if not values:
        return ()
    spread = [empty] * count
    for place, value in zip(at, values):
        spread[place] = value
    return tuple(spread)


def _name_from(image: File, folder: Path) -> str:
    """Return an image's path from `folder`; what lies inside an archive or a table is copied there first."""
    if isinstance(image, Path):
        return Path(os.path.relpath(image, folder)).as_posix()
    with image.open("rb") as file:
        data = file.read()
    copy = folder / "images" / copy_name(image.name, data)
    if not copy.exists():
        from ..cache import write_atomically  # here, as it imports torch

        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, data)
    return copy.relative_to(folder).as_posix()


def copy_name(name: str, data: bytes) -> str:
    """Return a name for a copy of a picture: its own, and what tells it from every other picture of that name."""
    path = Path(name)
    try:
        with Image.open(BytesIO(data)) as opened:
            suffix = SUFFIXES.get(opened.format or "", path.suffix)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        suffix = path.suffix  # copied as it is: `ranking_checks.check_images` says what is wrong with it
    return f"{path.stem}-{hashlib.sha256(data).hexdigest()[:16]}{suffix}"


def _ranking(values: dict, count: int, origin: str) -> Ranking:
    fields = _Fields(values, origin)
    return Ranking(
        fields.one("annotator", str),
        tuple(fields.listed("ranking", (*NUMBER, type(None)), count=count)),
        tuple(_rating(each, f"{origin}.ratings[{at}]") for at, each in _optional(fields, "ratings", count)),
        tuple(tuple(_strings(each, f"{origin}.issues[{at}]")) for at, each in _optional(fields, "issues", count)),
        fields.one("time_s", NUMBER, None),
        fields.one("valid", bool, True),
    )


def _optional(fields: "_Fields", name: str, count: int) -> Iterator[tuple[int, Any]]:
    given = fields.listed(name, object, ())
    return enumerate(fields.listed(name, object, count=count) if given else [])


def _rating(values: Any, origin: str) -> dict[str, int] | None:
    if values is None:
        return None
    good = isinstance(values, dict) and all(
        name in RATINGS and type(value) is int and 1 <= value <= 7 for name, value in values.items()
    )
    if not good:
        raise InputError(f"{origin}: {values!r}; give null or whole numbers from 1 to 7 of {', '.join(RATINGS)}")
    return values


def _strings(values: Any, origin: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{origin}: {values!r}; give a list of words, such as {', '.join(ISSUES)}")
    return values


class _Fields:
    """The fields of one JSON object, each checked as it is taken."""

    def __init__(self, values: Any, origin: str):
        if not isinstance(values, dict):
            raise InputError(f"{origin}: expected a JSON object, got {str(values)[:40]!r}")
        self.values, self.origin = values, origin

    def one(self, name: str, kind: type | tuple, *default: Any) -> Any:
        """Return a value of a type, or the default where it is missing or null."""
        value = self.values.get(name)
        if value is None and default:
            return default[0]
        if not _is(value, kind):
            raise InputError(f"{self.origin}: {name}: expected {_title(kind)}, got {self._shown(name)}")
        return value

    def listed(self, name: str, kind: type | tuple, *default: Any, count: int | None = None) -> Sequence:
        """Return a list of values of a type, `count` of them where that is given."""
        values = self.values.get(name)
        if values is None and default:
            return default[0]
        if not isinstance(values, list):
            raise InputError(f"{self.origin}: {name}: expected a list, got {self._shown(name)}")
        for at, value in enumerate(values):
            if not _is(value, kind):
                raise InputError(f"{self.origin}: {name}[{at}]: expected {_title(kind)}, got {value!r}")
        if count is not None and len(values) != count:
            raise InputError(f"{self.origin}: {name}: {len(values)} values for {count} images; give one each")
        return values

    def _shown(self, name: str) -> str:
        return repr(self.values[name])[:40] if name in self.values else "nothing"


def _is(value: Any, kind: type | tuple) -> bool:
    """isinstance, but a truth value is no number, and neither is nan or infinity."""
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, kind) and not (isinstance(value, float) and not np.isfinite(value))


def _title(kind: type | tuple) -> str:
    names = {str: "a text", dict: "an object", bool: "true or false", int: "a number", type(None): "null"}
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(names[each] for each in kinds if each in names)
