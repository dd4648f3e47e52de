"""The card of a stream: what came when, what was kept, and how every baseline did on the same sessions."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..mixtures.card import limits, metadata, mixture_card
from ..publish.cards.markdown import escape, literal, table
from ..publish.cards.parts import command_and_versions, heading, record, save, shown, title

COLUMNS = {
    "average_incremental_accuracy": "average incremental",
    "final_accuracy": "final",
    "forgetting": "forgetting",
    "worst_domain": "worst domain",
}


def name_of(head: str) -> str:
    """What tables and plots call a run by its head."""
    names = {"mixture": "vMF mixture", "auto": "vMF mixture or linear head", "pooled": "vMF mixture and RanPAC pooled"}
    return names.get(head, head)


def week_card(classifier: Any, name: str, weeks: list[dict]) -> ModelCard:
    """Return the card of a classifier that learnt week by week; weeks: rows of weeks.jsonl."""
    rows = [
        (str(row["week"]), str(row["learnt"]), str(row["classes"]), str(row["components"]), *_held_out(row))
        for row in weeks
    ]
    columns = ["week", "pictures learnt", "classes", "components", "held-out pictures", "right before", "right after"]
    text = "Percent right, on held-out pictures of all weeks until then, which were never learnt.\n\n" + table(
        columns, rows
    )
    return mixture_card(classifier, name, text)


def _held_out(row: dict) -> tuple[str, str, str]:
    before, after = (row[name].get("all") for name in ("before", "after"))
    if not after:
        return "0", "-", "-"
    shown_before = f"{100 * before['accuracy']:.1f}" if before else "-"
    return str(after["pictures"]), shown_before, f"{100 * after['accuracy']:.1f}"


def write_incremental_card(run: Path, ours: dict, baselines: list[dict], classifier: Any) -> Path:
    """Write README.md of a run folder of train_incremental.py from its measures."""
    noted = record(run)
    options = noted["options"]
    frozen, name = options.get("regime", "frozen") == "frozen", name_of(options.get("head", "mixture"))
    protocol = json.loads((run / "protocol.json").read_text(encoding="utf-8"))
    reference = title(options["backbone"]) if frozen else f"timm:{run.resolve().name}/backbone"
    text = f"""{heading(run, "a classifier that keeps learning")}

Mixtures of von Mises-Fisher distributions on the features of {shown(options["backbone"])}{"" if frozen else ", which learnt with them"}, grown
over {len(protocol["sessions"])} sessions of {options["setting"]}: {len(classifier.classes_)} classes, {len(classifier.space.counts)} components. After "General Incremental Learning with
Domain-aware Categorical Representations" (Xie, Yan & He, CVPR 2022); what that leaves open was decided here, and no number below is
the paper's.

## Use

```python
from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.embeddings.backbones import load_backbone

classifier = VMFMixtureClassifier.from_pretrained({literal(run.resolve().name)})
backbone = load_backbone({literal(reference)})
labels = classifier.predict(backbone.embed_images(images))
classifier.partial_fit(backbone.embed_images(new_images), new_labels)  # the next session
```

## Measured

{_table(name, ours, baselines)}

Percent, on held-out pictures of all classes and domains seen so far. {"" if frozen else "Baselines stand on the backbone as it was before. "}{_verdict(ours, baselines)}

![accuracy by session](accuracy.png)

![components of each class](components.png)

![pictures of the largest components](samples/components.png)

## Training

{command_and_versions(noted)}

The order of sessions is in protocol.json.

{limits(classifier)}
"""
    return save(run, metadata(), text)


def _table(name: str, ours: dict, baselines: list[dict]) -> str:
    rows = [{"learner": f"**{name}**", **ours}, *({**row, "learner": escape(row["learner"])} for row in baselines)]
    lines = [(row["learner"], *(f"{row[name]:.1f}" for name in COLUMNS), f"{row['stored_floats']:,}") for row in rows]
    return table(["learner", *COLUMNS.values(), "numbers stored"], lines)


def _verdict(ours: dict, baselines: list[dict]) -> str:
    """Say plainly which head is best here; the bound that keeps all data is no head."""
    name = "average_incremental_accuracy"
    rivals = [row for row in baselines if "bound" not in row["learner"]]
    if not rivals:
        return "No baseline was run."
    best = max(rivals, key=lambda row: row[name])
    lead = ours[name] - best[name]
    if lead >= 0:
        return f"It leads the best baseline, {best['learner']}, by {lead:.1f} points of average incremental accuracy."
    return (
        f"On this stream {best['learner']} is better by {-lead:.1f} points of average incremental accuracy: use it, from "
        "diffusers_ext.streams.baselines, or --head auto, if accuracy on such streams is all that counts."
    )
