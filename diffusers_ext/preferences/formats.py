"""Rankings in the forms that the known data sets come in, all read to the same `RankedPrompt`.

    rankings.jsonl              this project's (see `rankings`)
    train.json, test.json       ImageReward: {"id", "prompt", "generations", "ranking"}
    train.json                  HPDv2: {"prompt", "file_path": [a, b], "human_preference": [1, 0], "user_hash"}
    test.json                   HPDv2: {"prompt", "image_path", "rank", "raw_annotations": [{"rank", "user_hash"}]}
    *.parquet, or a folder      Pick-a-Pic: jpg_0, jpg_1, label_0, caption; the pictures lie in the table

The official data set of ImageReward on the Hub is a loading script, which `datasets` no longer runs: unzip its
archives and give its json. A person who is not named is "unknown".
"""

from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..lines import parse_json, read_text
from .rankings import NUMBER, RankedPrompt, Ranking, _Fields, check_ids, group_by_prompt, read

UNKNOWN = "unknown"


def read_rankings(
    source: str | Path, image_root: str | Path | None = None, split: str | None = None
) -> list[RankedPrompt]:
    """Read rankings in any of the forms above; those of HPDv2 and Pick-a-Pic are joined by prompt.

    image_root: the folder that paths in ImageReward's and HPDv2's files start from; default: the file's own.
    split: only those of this split, in a file that names splits.
    Raises InputError, naming file, row and field.
    """
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such file; give rankings as .jsonl, ImageReward's or HPDv2's .json, or .parquet")
    if path.is_dir() or path.suffix == ".parquet":
        if split is not None:
            raise InputError(f"--split {split}: Pick-a-Pic's files, as {path}, name no splits; leave it out")
        return group_by_prompt(read_pickapic(path))
    prompts = read(path) if path.suffix == ".jsonl" else read_json(path, Path(image_root or path.parent))
    if split is not None:
        splits = sorted({prompt.split for prompt in prompts})
        prompts = [prompt for prompt in prompts if prompt.split == split]
        if not prompts:
            raise InputError(f"{path}: no rankings of split {split!r}; it has {', '.join(splits)}")
    return prompts


def read_json(path: Path, image_root: Path) -> list[RankedPrompt]:
    """Read a JSON list of ImageReward's or HPDv2's."""
    rows = parse_json(read_text(path), path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected a list of rankings")
    form = next((form for form in FORMS if isinstance(rows[0], dict) and form in rows[0]), None)
    if form is None:
        raise InputError(f"{path}[0]: none of the known forms; it needs one of {', '.join(FORMS)}")
    prompts = [FORMS[form](_Fields(row, f"{path}[{at}]"), image_root, at) for at, row in enumerate(rows)]
    check_ids(prompts)
    return prompts if form == "generations" else group_by_prompt(prompts)


def _imagereward(row: _Fields, root: Path, at: int) -> RankedPrompt:
    images = _images(row, "generations", root)
    ranking = Ranking(UNKNOWN, tuple(row.listed("ranking", NUMBER, count=len(images))))
    return RankedPrompt(row.one("id", str), row.one("prompt", str), images, (ranking,), origin=row.origin)


def _hpd_choice(row: _Fields, root: Path, at: int) -> RankedPrompt:
    """A choice between two images, 1 at the preferred."""
    images = _images(row, "file_path", root)
    chosen = row.listed("human_preference", NUMBER, count=len(images))
    ranking = Ranking(str(row.one("user_hash", str, UNKNOWN)), tuple(1 - value for value in chosen))
    return RankedPrompt(str(at), row.one("prompt", str), images, (ranking,), origin=row.origin)


def _hpd_ranking(row: _Fields, root: Path, at: int) -> RankedPrompt:
    """Rankings of several people, or where those are not given their average."""
    images = _images(row, "image_path", root)
    name = "raw_annotations" if "raw_annotations" in row.values else "raw_annotation"
    people = [_Fields(each, f"{row.origin}: {name}[{n}]") for n, each in enumerate(row.listed(name, dict, ()))]
    rankings = [
        Ranking(person.one("user_hash", str, f"{UNKNOWN}-{n}"), tuple(person.listed("rank", NUMBER, count=len(images))))
        for n, person in enumerate(people)
    ] or [Ranking("average", tuple(row.listed("rank", NUMBER, count=len(images))))]
    return RankedPrompt(str(at), row.one("prompt", str), images, tuple(rankings), origin=row.origin)


FORMS: dict[str, Callable[[_Fields, Path, int], RankedPrompt]] = {  # by the field that only this form has
    "generations": _imagereward,
    "human_preference": _hpd_choice,
    "image_path": _hpd_ranking,
}


def _images(row: _Fields, field: str, root: Path) -> tuple[Path, ...]:
    names = row.listed(field, str)
    if not names:
        raise InputError(f"{row.origin}: {field}: empty")
    return tuple(root / name for name in names)


def read_pickapic(source: Path) -> list[RankedPrompt]:
    """Read Pick-a-Pic's choices between two pictures: from parquet files, or a folder of them or of save_to_disk.

    label_0 is 1 where the first picture was preferred, 0.5 for a tie. Rows without a label are left out.
    """
    from ..data.cells import Cell, open_table

    data = open_table(source)
    missing = {"jpg_0", "jpg_1", "label_0", "caption"} - set(data.column_names)
    if missing:
        raise InputError(f"{source}: no column {', '.join(sorted(missing))}; it has {', '.join(data.column_names)}")
    pictures = [data.select_columns([name]) for name in ("jpg_0", "jpg_1")]
    table = data.select_columns([name for name in data.column_names if not name.startswith("jpg_")])
    known: dict[str, Cell] = {}  # one picture, one object, in whichever rows it is shown
    prompts = []
    for at, row in enumerate(table):
        if row.get("has_label") is False or row["label_0"] is None:
            continue
        images = []
        for side in (0, 1):
            cell = Cell(pictures[side], at, f"jpg_{side}", str(source))
            images.append(known.setdefault(row.get(f"image_{side}_uid") or str(cell), cell))
        person = str(row.get("user_id", UNKNOWN))
        rank = (1 - row["label_0"], row["label_0"])
        identity = str(row.get("ranking_id", at))
        prompts.append(
            RankedPrompt(identity, row["caption"], tuple(images), (Ranking(person, rank),), origin=f"{source}[{at}]")
        )
    if not prompts:
        raise InputError(f"{source}: no row has a label")
    return prompts
