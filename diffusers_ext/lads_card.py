"""The card of a LADS classifier, written from its configuration alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .cards import published


def card(config: Mapping[str, Any], name: str) -> ModelCard:
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
    classes = ", ".join(config["classes"][:50]) + (" …" if len(config["classes"]) > 50 else "")
    shown = json.dumps(config["domains"], ensure_ascii=False)
    return ModelCard(f"""---
{data.to_yaml()}
---

# {name}: a classifier extended to unseen domains by words

{len(config["classes"])} classes: {classes}.

## Use

```python
from diffusers_ext import LADSClassifier

classifier = LADSClassifier.from_pretrained("{name}")
labels, probabilities, domains = classifier.predict(["picture.png"])
```

Pictures are embedded by `{backbone_name(backbone)}`{_digest(config)}, which is not part of this folder. `predict` also takes embeddings of
{config["dim"]} dimensions. `head="zero_shot"`, `"ensemble"` and `"wise"` use text too.

## Training

LADS (Dunlap et al., ICLR 2023): {config["networks"]} network(s) move image embeddings where these words point; a linear
probe is trained on images and moved images together, and alone classifies. No image of a target domain was used.

```json
{shown}
```

{_options(training)}
## Measured

{training.get("table") or "Nothing was measured."}

{training.get("measured_on", "")}

## Limits

It knows the classes above and no others. The domain it reports is what text sees in the embedding, nothing more. It inherits
the backbone's biases and licence. Not checked for people, faces or text.
""")


def backbone_name(backbone: str | None) -> str:
    """Return a reference without the path of the machine it was trained on."""
    return "a backbone of your own" if not backbone else Path(backbone).name if Path(backbone).exists() else backbone


def _digest(config: Mapping[str, Any]) -> str:
    return f" (weights {config['weights_digest'][:12]})" if config["weights_digest"] else ""


def _options(training: Mapping[str, Any]) -> str:
    """Counts, command and options, where they are known."""
    lines = [training.get("counts", "")]
    if training.get("command"):
        lines += ["", "```bash", published(training["command"]), "```"]
    if training.get("options"):
        lines += ["", ", ".join(f"{name} {value}" for name, value in training["options"].items()) + "."]
    return "\n".join(lines).strip() + "\n"
