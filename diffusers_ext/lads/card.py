"""The card of a LADS classifier, written from its configuration alone."""

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..publish.cards.markdown import escape, escape_table, fenced, literal
from ..publish.cards.parts import NOT_TO_JUDGE, new_card, published, shown, versions


def lads_card(config: Mapping[str, Any], name: str) -> ModelCard:
    """Return the model card; config as `LADSClassifier` registers it."""
    training, backbone = config["training"] or {}, config["backbone"]
    on_hub = backbone and backbone.startswith("hf-hub:")
    data = ModelCardData(
        library_name="diffusers_ext",
        pipeline_tag="image-classification",
        tags=["domain-extension", "lads", "open_clip", "diffusers_ext"],
        base_model=backbone.removeprefix("hf-hub:") if on_hub else None,
        license="other",
        license_name="that-of-the-backbone",
    )
    wise = ', `"wise"`' if training.get("options", {}).get("zero_shot_init") else ""
    classes = ", ".join(map(escape, config["classes"][:50])) + (" …" if len(config["classes"]) > 50 else "")
    domains = json.dumps(config["domains"], ensure_ascii=False)
    text = f"""# {escape(name)}: a classifier extended to unseen domains by words

{len(config["classes"])} classes: {classes}.

## Use

```python
from diffusers_ext import LADSClassifier

classifier = LADSClassifier.from_pretrained({literal(name)})
labels, probabilities, domains = classifier.predict(["picture.png"])
```

Pictures are embedded by {shown(backbone)}{_digest(config)}, which is not part of this folder. `predict` also takes embeddings of
{config["dim"]} dimensions. `head="zero_shot"`, `"ensemble"`, `"calibrated"`{wise} use text too.

## Training

LADS (Dunlap et al., ICLR 2023): {config["networks"]} network(s) move image embeddings where these words point; a linear
probe is trained on images and moved images together, and alone classifies. {_seen(config)}

{fenced(domains, "json")}

{_training(training)}

## Measured

{escape_table(training.get("table") or "Nothing was measured.")}

{escape(training.get("measured_on", ""))}

## Limits and misuse

It knows the classes above and no others. The domain it reports is what text sees in the embedding, nothing more. It inherits
the backbone's biases and licence. Not checked for people, faces or text. {NOT_TO_JUDGE}
"""
    return new_card(data, text)


def _digest(config: Mapping[str, Any]) -> str:
    return f" (weights {config['weights_digest'][:12]})" if config["weights_digest"] else ""


def _seen(config: Mapping[str, Any]) -> str:
    """Say whether images of the other domains were used."""
    by_images = (config["training"] or {}).get("options", {}).get("image_directions")
    moves = "The moves are those of mean images, without labels, not of the words." if by_images else ""
    if "swap" in config["domains"]:
        return f"Images of both domains were trained on; in them class and domain go together. {moves}".strip()
    return moves or "No image of a target domain was used."


def _training(training: Mapping[str, Any]) -> str:
    """Counts, command, options and versions, where they are known."""
    parts = [escape(training.get("counts", ""))]
    if training.get("command"):
        parts.append(fenced(published(training["command"]), "bash"))
    if training.get("options"):
        parts.append(", ".join(f"{name} {escape(value)}" for name, value in training["options"].items()) + ".")
    if training.get("versions"):
        parts.append(versions(training))
    return "\n\n".join(part for part in parts if part) or "Nothing was noted."
