"""The card of a `VMFMixtureClassifier`: what it has learnt, and how far its probabilities can be believed."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..publish.cards.markdown import escape, literal
from ..publish.cards.parts import NOT_TO_JUDGE, new_card, shown
from .report import calibration_text

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

{limits(classifier)}
"""
    return new_card(metadata(), text)


def metadata() -> ModelCardData:
    """Return what the Hub knows such a classifier by."""
    return ModelCardData(
        library_name="diffusers_ext",
        pipeline_tag="image-classification",
        tags=["continual-learning", "diffusers_ext"],
        license="other",
        license_name="that-of-the-backbone-and-the-data",
    )


def limits(classifier: Any) -> str:
    """Return the section on limits and misuse."""
    remembered = len(classifier.exemplars.features) + len(classifier.learnt.jury.features)
    return f"""## Limits and misuse

It knows what the backbone tells apart. Memory and jury hold {remembered} feature vectors of training pictures, no
pictures. {_calibration(classifier)} Novelty scores are comparable within one session.
{NOT_TO_JUDGE}"""


def _calibration(classifier: Any) -> str:
    text = calibration_text(classifier.learnt, len(classifier.classes_))
    return f"{text[0].upper()}{text[1:]}."
