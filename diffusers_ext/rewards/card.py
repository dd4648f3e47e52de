"""The card of a converted reward: which file it was converted from."""

import hashlib
from pathlib import Path

from ..publish.cards.markdown import escape
from .image_reward_hub import new_card
from .modeling_image_reward import ImageRewardConfig


def write_converted_card(folder: Path, source: Path, config: ImageRewardConfig) -> Path:
    """Write README.md of a folder that `diffusers-ext convert-reward` fills; the digest names the very file converted."""
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    origin = f"""Converted, without any
change of a number, from an official checkpoint; the conversion measured no accuracy.

| file | sha256 |
|---|---|
| {escape(source.name)} | `{digest.hexdigest()}` |

Metadata names THUDM/ImageReward as the origin. If that file came out of a training of your own, put its origin, data and
licence there instead."""
    card = new_card(
        folder.resolve().name,
        config,
        origin,
        license="apache-2.0",
        base_model="THUDM/ImageReward",
        base_model_relation="finetune",
        datasets=["THUDM/ImageRewardDB"],
    )
    path = folder / "README.md"
    card.save(path)
    return path
