"""The card of a reward model."""

import json
from pathlib import Path

from huggingface_hub import ModelCardData

from ..publish.cards.markdown import escape, literal
from ..publish.cards.parts import (
    NOT_TO_FILTER,
    heading,
    hub_name,
    licence,
    measured,
    picture,
    record,
    save,
    title,
    training,
)
from .checks import Counts

MEASURES = {
    "held_out_accuracy": "share of strict pairs ordered as people did",
    "held_out_accuracy_low": "its interval, from",
    "held_out_accuracy_high": "to",
    "held_out_spearman": "Spearman's ρ with the rankings, mean",
    "held_out_kendall": "Kendall's τ with the rankings, mean",
}


def write_reward_card(run: Path, pairs: Counts, held_out: Counts) -> Path:
    """Write README.md of a run folder of train_reward_model.py; pairs: what it was trained on."""
    options, config = record(run)["options"], json.loads((run / "config.json").read_text(encoding="utf-8"))
    base, head_alone = options["backbone"], config["model_type"] == "open_clip_reward"
    terms = {"license": "unknown"} if base == "tiny" else licence(base)
    data = ModelCardData(
        library_name="transformers",
        tags=["reward-model", "human-preference", "diffusers_ext"],
        base_model=None if base == "tiny" else hub_name(base),
        **terms,
    )
    name = "LinearHeadReward" if head_alone else "ImageRewardModel"
    module = "diffusers_ext.rewards.linear_head" if head_alone else "diffusers_ext"
    architecture = (
        f"A head on the frozen embeddings of {escape(title(base))}"
        if head_alone
        else f"ImageReward (Xu et al. 2023) from {escape(title(base))}, {options['freeze_fraction']:.0%} of the layers frozen"
    )
    how = f"on held-out prompts: {held_out}; 95 % interval over prompts. Equal scores count as wrong"
    text = f"""{heading(run, "a reward model for images and prompts")}

{picture(run)}

Held-out prompts: the images from the highest reward to the lowest.

## Use

```python
from {module} import {name}

reward = {name}.from_pretrained({literal(run.name)})
scores = reward.score("a prompt", images)  # higher is better; compare images of one prompt only
```

## Training

{architecture}. −log σ(r_winner − r_loser) on every strict pair, each {options["pair_weighting"]} counting alike.
Trained on: {pairs}.

Rewards are normalised by the training images' mean {config["reward_mean"]:.4g} and deviation {config["reward_std"]:.4g}.

{training(run)}

## Measured

{measured(run, MEASURES, how)}

`best/` holds the most accurate weights of the run.

## Limits and misuse

It predicts the people who ranked these images, on prompts and images like these. A model tuned on it finds what it
overlooks: measure with another reward as well. {NOT_TO_FILTER}
"""
    return save(run, data, text)
