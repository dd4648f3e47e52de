"""An ImageReward on the Hub: its card, and the tokenizer that diffusers leaves there.

Copied beside the weights of saved reward models, so it imports nothing of its package.
"""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from transformers.utils import cached_file

TAGS = ["image-reward", "reward-model", "text-to-image", "human-preferences", "custom_code", "diffusers_ext"]
UNKNOWN = "Its origin, data and accuracy are not recorded here: whoever publishes it should say them."

TOKENIZER = ("tokenizer_config.json", "tokenizer.json")


def fetch_tokenizer(folder: str | os.PathLike) -> None:
    """Download the tokenizer of a reward that is a component of a pipeline, into the Hub's cache.

    Of a component with weights, diffusers downloads these and the config alone. The cache names repository and commit:
    <cache>/models--owner--name/snapshots/<commit>/<component>. Does nothing to any other folder, or without the network.
    """
    folder = Path(folder).absolute()
    known = (folder / TOKENIZER[0]).exists() or not folder.is_dir()
    if known or len(folder.parents) < 4 or folder.parents[1].name != "snapshots":
        return
    repository = folder.parents[2].name.removeprefix("models--").replace("--", "/", 1)
    for name in TOKENIZER:
        try:
            hf_hub_download(
                repository, name, subfolder=folder.name, revision=folder.parent.name, cache_dir=folder.parents[3]
            )
        except (OSError, ValueError, EntryNotFoundError):  # no such file there, no network, no such repository
            return


def card_of(model: Any, name: str) -> ModelCard:
    """Return the card of the folder that the model was loaded from while its weights are still that folder's.

    Otherwise what can be read off the model. name: of the repository that it goes to.
    """
    known = _file(model, "README.md")
    if known and _unchanged(model):
        local = f'"{Path(model.name_or_path).name}"'  # by which the folder's card loads it
        return ModelCard(known.read_text(encoding="utf-8").replace(local, f'"{name}"'))
    return new_card(name, model.config, UNKNOWN)


def new_card(name: str, config: Any, origin: str, **metadata: Any) -> ModelCard:
    """Return a card. name: to load the model by. origin: Markdown, where it comes from. config: an ImageRewardConfig."""
    data = ModelCardData(library_name="transformers", tags=TAGS, **metadata)
    text = f"""# {name.split("/")[-1]}: ImageReward for transformers

Scores how well a picture answers a prompt, as people would judge it (Xu et al. 2023, arXiv:2304.05977). {origin}

## Use

```python
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
print(model.score("a painting of the ocean", Image.open("ocean.png")))
```

With diffusers_ext installed, `diffusers_ext.load_reward("{name}")` gives the same.

## What it is

BLIP with {config.vision_config.num_hidden_layers} image and {config.text_config.num_hidden_layers} text layers, {config.vision_config.image_size} px, and linear layers on its [CLS] token. It reads
{config.max_length} tokens of a prompt, and of a picture the middle square. Scores are normalised by mean {config.reward_mean:.4f} and
deviation {config.reward_std:.4f} of the training set.

## Limits

Only differences under one prompt mean something: there is no threshold of a good picture. It inherits the taste of its
annotators and their prompts. Optimised against, it can be fooled: watch a second reward.
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _file(model: Any, name: str) -> Path | None:
    """A file of the folder or repository that the model was loaded from, if it was and if that is still there."""
    try:
        path = cached_file(model.name_or_path, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return Path(path) if path else None


def _unchanged(model: Any) -> bool:
    """Whether every weight is, bit for bit, what lies where the model was loaded from."""
    path, state = _file(model, "model.safetensors"), model.state_dict()
    if path is None:
        return False
    with safe_open(path, framework="pt") as weights:
        names = set(weights.keys())
        return names <= set(state) and all(_equal(weights.get_tensor(name), state[name]) for name in names)


def _equal(stored: torch.Tensor, weight: torch.Tensor) -> bool:
    return stored.dtype == weight.dtype and torch.equal(stored, weight.cpu())
