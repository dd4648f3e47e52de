"""The card of a stream: what came when, what was kept, and how every baseline did on the same sessions."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..mixture.report import calibration_text
from .markdown import escape, literal, table
from .parts import NOT_TO_JUDGE, command_and_versions, heading, new_card, record, save, shown, title

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


UNMEASURED = "Nothing is recorded here: whoever publishes it should say what it was tested on."


def mixture_card(classifier: Any, name: str, measured: str = UNMEASURED) -> ModelCard:
    """Return the card of a `VMFMixtureClassifier` alone; measured: what is known of its accuracy."""
    components = sum(classifier.n_components_.values())
    text = f"""# {escape(name)}: a classifier that keeps learning

Mixtures of von Mises-Fisher distributions on features of {classifier.config["dim"]} dimensions of {shown(classifier.config["encoder"])}:
{len(classifier.classes_)} classes, {components} components. After "General Incremental Learning with Domain-aware Categorical
Representations" (Xie, Yan & He, CVPR 2022).

## Use

```python
from diffusers_ext import VMFMixtureClassifier

classifier = VMFMixtureClassifier.from_pretrained({literal(name)})
labels = classifier.predict(features)
classifier.partial_fit(new_features, new_labels)  # the next session
```

## Measured

{measured}

{_limits(classifier)}
"""
    return new_card(_data(), text)


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
from diffusers_ext.backbones import load_backbone

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

{_limits(classifier)}
"""
    return save(run, _data(), text)


def _data() -> ModelCardData:
    return ModelCardData(
        library_name="diffusers_ext",
        pipeline_tag="image-classification",
        tags=["continual-learning", "diffusers_ext"],
        license="other",
        license_name="that-of-the-backbone-and-the-data",
    )


def _limits(classifier: Any) -> str:
    remembered = len(classifier.exemplars.features) + len(classifier.learnt.jury.features)
    return f"""## Limits and misuse

It knows what the backbone tells apart. Memory and jury hold {remembered} feature vectors of training pictures, no
pictures. {_calibration(classifier)} Novelty scores are comparable within one session.
{NOT_TO_JUDGE}"""


def _calibration(classifier: Any) -> str:
    text = calibration_text(classifier.learnt, len(classifier.classes_))
    return f"{text[0].upper()}{text[1:]}."


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
        "diffusers_ext.incremental_baselines, or --head auto, if accuracy on such streams is all that counts."
    )
