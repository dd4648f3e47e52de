"""The card of a stream: what came when, what was kept, and how every baseline did on the same sessions."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .cards import published
from .run_folder import OPTIONS

COLUMNS = {
    "average_incremental_accuracy": "average incremental",
    "final_accuracy": "final",
    "forgetting": "forgetting",
    "worst_domain": "worst domain",
}


def write_incremental_card(run: Path, ours: dict, baselines: list[dict], classifier: Any) -> Path:
    """Write README.md of a run folder of train_incremental.py from its measures."""
    record = json.loads((run / OPTIONS).read_text(encoding="utf-8"))
    protocol = json.loads((run / "protocol.json").read_text(encoding="utf-8"))
    options = record["options"]
    data = ModelCardData(
        library_name="diffusers", pipeline_tag="image-classification", tags=["continual-learning", "diffusers_ext"]
    )
    text = f"""# {run.resolve().name}: a classifier that keeps learning

Mixtures of von Mises-Fisher distributions on the features of `{options["backbone"]}`, grown over {len(protocol["sessions"])} sessions of
{options["setting"]}: {len(classifier.classes_)} classes, {len(classifier.space.counts)} components. After "General Incremental Learning with
Domain-aware Categorical Representations" (Xie, Yan & He, CVPR 2022); what that leaves open was decided here, and no number below is
the paper's.

## Use

```python
from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.backbones import load_backbone

classifier = VMFMixtureClassifier.from_pretrained("{run.resolve().name}")
backbone = load_backbone({json.dumps(options["backbone"])})
labels = classifier.predict(backbone.embed_images(images))
classifier.partial_fit(backbone.embed_images(new_images), new_labels)  # the next session
```

## Measured

{_table(ours, baselines)}

Percent, on held-out pictures of all classes and domains seen so far. {_verdict(ours, baselines)}

![accuracy by session](accuracy.png)

![components of each class](components.png)

![pictures of the largest components](samples/components.png)

## Training

```bash
{published(record["command"])}
```

The order of sessions is in protocol.json. {", ".join(f"{name} {version}" for name, version in record["versions"].items())}.

## Limits

It knows what the frozen backbone tells apart. The memory holds {len(classifier.exemplars.features)} feature vectors of training pictures, no
pictures. Probabilities are calibrated on held-out samples of the sessions; novelty scores are comparable within one session.
"""
    path = run / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(path)
    return path


def _table(ours: dict, baselines: list[dict]) -> str:
    head = f"| learner | {' | '.join(COLUMNS.values())} | numbers stored |\n|---|{'---|' * (len(COLUMNS) + 1)}"
    rows = [{"learner": "**vMF mixture**", **ours}, *baselines]
    lines = [
        f"| {row['learner']} | {' | '.join(f'{row[name]:.1f}' for name in COLUMNS)} | {row['stored_floats']:,} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _verdict(ours: dict, baselines: list[dict]) -> str:
    """Say plainly which head is best here; the bound that keeps all data is no head."""
    name = "average_incremental_accuracy"
    rivals = [row for row in baselines if "bound" not in row["learner"]]
    if not rivals:
        return "No baseline was run."
    best = max(rivals, key=lambda row: row[name])
    lead = ours[name] - best[name]
    if lead >= 0:
        return f"The mixture leads the best baseline, {best['learner']}, by {lead:.1f} points of average incremental accuracy."
    return (
        f"On this stream {best['learner']} is better by {-lead:.1f} points of average incremental accuracy: use it, from "
        "diffusers_ext.incremental_baselines, if accuracy on such streams is all that counts."
    )
