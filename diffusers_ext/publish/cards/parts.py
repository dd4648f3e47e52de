"""What the cards of several kinds share: metadata of a base model, the exact command, curve, table, limits and misuse.

Every number comes from metrics.jsonl, the command and the versions from options.json, pictures from samples/.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ...engine.run_folder import OPTIONS, read_metrics
from ...figures import plot_curves
from ...toy.embedded import embedded_model
from .markdown import code, escape, fenced, literal, table

HELD_OUT = {"held_out_loss": "held out, right condition", "held_out_loss_wrong": "held out, wrong condition"}

NOT_TO_DRAW = """Do not use it to draw real people without their consent, to pass off as true what never happened, or for what the base model's
licence forbids."""
NOT_TO_JUDGE = """Do not use it to identify people, to decide about them, or where a wrong answer harms."""
NOT_TO_FILTER = """Do not use it to decide what is safe, true or allowed to be shown, or to judge people."""


def new_card(data: ModelCardData, text: str) -> ModelCard:
    """Return a card of metadata and Markdown."""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n")


def save(folder: Path, data: ModelCardData, text: str) -> Path:
    """Write README.md into a folder and return its path."""
    path = folder / "README.md"
    new_card(data, text).save(path)
    return path


def record(run: Path) -> dict:
    """Return what options.json holds: command, options, versions."""
    return json.loads((run / OPTIONS).read_text(encoding="utf-8"))


def published(command: str) -> str:
    """Return a command as a card shows it: of an absolute path only the last name, as others have no such folder."""
    return re.sub(r"(?<![\w.:/])[~/][^\s'\"=,@]*/([^\s'\"=,@/]+)", r"\1", command)


def command_and_versions(run: dict) -> str:
    """The exact command as a block to paste, and the versions; run: as `record` returns it."""
    return f"{fenced(published(run['command']), 'bash')}\n\n{versions(run)}"


def versions(run: Mapping[str, Any]) -> str:
    """The versions that a result depends on, as a sentence."""
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items()) + "."


def training(run: Path) -> str:
    """The command, the numbers and the curve of a run of `loop.train`; draws loss.png."""
    noted, everything = record(run), read_metrics(run)
    options, rows = noted["options"], [row for row in everything if "loss" in row]
    window = max(1, len(rows) // 50)
    means = [
        sum(row["loss"] for row in rows[index : index + window]) / len(rows[index : index + window])
        for index in range(0, len(rows), window)
    ]
    curves = {"training": ([row["step"] for row in rows[::window]], means)}
    for name, label in HELD_OUT.items():
        found = [row for row in everything if name in row]
        if found:
            curves[label] = ([row["step"] for row in found], [row[name] for row in found])
    plot_curves(run / "loss.png", curves, "step", "loss", log_y=True)
    return f"""{fenced(published(noted["command"]), "bash")}

{rows[-1]["step"]:,} steps of {options["train_batch_size"]} x {options["gradient_accumulation_steps"]} samples per process, AdamW at
{options["learning_rate"]:g} ({options["lr_scheduler"]}), seed {options["seed"]}. {versions(noted)}

![training loss](loss.png)"""


def measured(run: Path, meanings: dict[str, str], how: str) -> str:
    """A table of the first and the last measurement of a run, and a sentence on how they came about.

    meanings: what the columns of metrics.jsonl mean; other columns are not shown.
    """
    rows = [row for row in read_metrics(run) if any(name in row for name in meanings)]
    if not rows:
        return "Nothing was measured: the prompts are not of a set with a known truth. Judge by the pictures."
    lines = [
        (meaning, f"{rows[0].get(name, float('nan')):.3g}", f"{rows[-1][name]:.3g}")
        for name, meaning in meanings.items()
        if name in rows[-1]
    ]
    head = ("measure", f"step {rows[0]['step']:,}", f"step {rows[-1]['step']:,}")
    return f"{table(head, lines)}\n\n{how[:1].upper()}{how[1:]}."


def picture(run: Path) -> str:
    """The grid of the last step, where there is one."""
    samples = sorted((run / "samples").glob("step-*.png"))
    return f"![samples of the last step](samples/{samples[-1].name})" if samples else ""


def hub_name(base: str) -> str | None:
    """Return the name of a base model on the Hub; None for a folder."""
    return None if Path(base).exists() or Path(base).is_absolute() else base


def title(base: str) -> str:
    """Return what to call a base model: of a folder only the last name, as others have no such path."""
    return base if hub_name(base) else Path(base).name


def shown(base: str | None) -> str:
    """Return the name of a backbone as code; of a folder only the last name."""
    return code(title(base)) if base else "a backbone of your own"


def licence(base: str) -> dict[str, Any]:
    """Return the metadata of the base's licence, from its card where that is at hand."""
    card = Path(base) / "README.md"
    data = ModelCard.load(card).data.to_dict() if card.exists() else {}
    known = {name: data[name] for name in ("license", "license_name", "license_link") if data.get(name)}
    if known.get("license", "other") != "other":
        return known
    return {"license": "other", "license_name": "that-of-the-base-model", **known}


def of_base(base: str, relation: str) -> dict[str, Any]:
    """Return the metadata of a base model: its name on the Hub, what was made of it, and its licence."""
    name = hub_name(base)
    return {"base_model": name, "base_model_relation": relation if name else None, **licence(base)}


def load_argument(base: str) -> str:
    """Return what stands for the base in an example's `from_pretrained(...)`."""
    return "diffusers_ext.embedded_model()" if base == embedded_model() else literal(title(base))


def import_for(base: str) -> str:
    """Return the import that `load_argument` needs, if any, as lines after others."""
    return "\n\nimport diffusers_ext" if base == embedded_model() else ""


def heading(run: Path, what: str) -> str:
    """Return the card's first line."""
    return f"# {escape(run.resolve().name)}: {what}"
