"""Write report.html, one page about all that the story did, from what its runs left behind; and story.png, its pictures.

python examples/story/report.py --folder runs/story
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import chapters
import classes
import page
from estimates import read_json
from steps import FULL, story
from walk import read_records

from diffusers_ext.options import option, run

CHAPTERS: dict[str, Callable[[Path], str]] = {
    "prompts": chapters.prompts,
    "candidates": chapters.candidates,
    "people": chapters.people,
    "reward": chapters.reward,
    "rerank": chapters.rerank,
    "tune": chapters.tune,
    "control": chapters.control,
    "words": classes.words,
    "extend": classes.extend,
    "grow": classes.grow,
    "load": classes.load,
}
WITH = {
    "control": ("control", "closer"),
    "load": ("publish", "load"),
    "tune": ("tune", "measure"),
}  # steps of a chapter


@dataclass
class Options:
    folder: str = option("runs/story", "the story's folder")


def main(options: Options) -> None:
    folder = Path(options.folder)
    steps, records = story(folder, FULL), read_records(folder)
    titles = {step.name: step.title for step in steps}
    ended = {
        step.name: {row["command"] for row in records if row["step"] == step.name and row["done"]} for step in steps
    }
    done = {step.name for step in steps if len(ended[step.name]) >= len(step.commands)}
    parts, strip = [], pictures(folder) if {"measure", "rerank"} <= done else None
    if strip:
        strip.save(folder / "story.png", optimize=True)
        parts.append(page.figure(strip, "From top to bottom: what each part of the story did to the pictures."))
    parts += [costs(folder, titles, records)]
    for name, chapter in CHAPTERS.items():
        parts.append(f'<h2 id="{name}">{titles[name][0].upper()}{titles[name][1:]}</h2>')
        missing = [step for step in WITH.get(name, (name,)) if step not in done]
        parts.append(page.text(f"Not run yet: {', '.join(missing)}.", "short") if missing else chapter(folder))
        parts.append(spent(records, WITH.get(name, (name,))))
    body = [
        "<h1>diffusers_ext, the whole story</h1>",
        page.text(
            "Prompts chosen, pictures ranked, a reward learnt, pictures chosen by it, a model tuned by it, a ControlNet "
            "trained, classifiers extended and grown, everything published and loaded again: on the small model that ships "
            "with the package, on this machine. Written from the run folders alone.",
            "soft",
        ),
        *parts,
    ]
    (folder / "report.html").write_text(page.page("diffusers_ext: the whole story", "".join(body)), encoding="utf-8")
    print(f"{folder / 'report.html'}, {folder / 'story.png'}")


def costs(folder: Path, titles: dict, records: list[dict]) -> str:
    """The table of steps with what each took, and on what."""
    import os

    from diffusers_ext.engine.run_folder import versions

    rows = []
    for name, title in titles.items():
        own = [row for row in records if row["step"] == name]
        if own:
            rows.append([title, f"{total(own, 'wall_s') / 60:.1f}", f"{total(own, 'cpu_s') / 60:.1f}"])
    rows.append(["all", f"{total(records, 'wall_s') / 60:.1f}", f"{total(records, 'cpu_s') / 60:.1f}"])
    files, megabytes = classes.size(folder)
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    about = (
        f"{os.cpu_count()} cores, threads of a process: {os.environ.get('OMP_NUM_THREADS', 'as many')}; {files:,} files, "
        f"{megabytes} MB. {made}. Wall time counts whatever else the machine did; a step that was interrupted counts all its attempts."
    )
    return page.table(["step", "wall min", "CPU min"], rows) + page.text(about, "soft")


def spent(records: list[dict], names: tuple[str, ...]) -> str:
    """What was typed, and what it took."""
    own = [row for row in records if row["step"] in names and row["done"]]
    lines = [f"$ {row['command']}\n# {row['wall_s']:.0f} s, {row['cpu_s']:.0f} s of CPU time" for row in own]
    return "<details><summary>commands</summary>" + page.commands(lines) + "</details>" if lines else ""


def total(rows: list[dict], name: str) -> float:
    return sum(row[name] for row in rows)


def pictures(folder: Path):
    """The story in one strip: the first rows of what was drawn."""
    from PIL import Image

    from diffusers_ext.figures import labelled_grid

    scores = read_json(folder / "rerank" / "scores.json")["prompts"][:7]
    load = lambda row: Image.open(folder / "rerank" / row["image"])  # noqa: E731
    rows = [[load(each["candidates"][at]) for each in scores] for at in (-1, 0)]
    columns = [each["prompt"].replace(" background", "").replace(" circle with ", " on ") for each in scores]
    count = len(scores[0]["candidates"])
    labels = [f"last of {count} by a reward learnt from rankings", f"first of {count}"]
    chosen = labelled_grid(rows, columns, labels, cell=112)
    sheets = [chosen, Image.open(folder / "tuned.png"), Image.open(folder / "control.png")]
    sheets = [sheet.resize((chosen.width, round(sheet.height * chosen.width / sheet.width))) for sheet in sheets]
    strip = Image.new("RGB", (chosen.width, sum(sheet.height for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        strip.paste(sheet, (0, top))
        top += sheet.height
    return strip


if __name__ == "__main__":
    run(main, Options)
