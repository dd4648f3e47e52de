"""The card of a converted reward: what it was converted from, how to use it, what it does not know."""

import hashlib
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .modeling_image_reward import ImageRewardConfig


def write_converted_card(folder: Path, source: Path, config: ImageRewardConfig) -> Path:
    """Write README.md of a folder that `diffusers-ext convert-reward` fills; the digest names the very file converted."""
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    data = ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        base_model="THUDM/ImageReward",
        base_model_relation="finetune",
        tags=["image-reward", "reward-model", "text-to-image", "human-preferences", "custom_code", "diffusers_ext"],
        datasets=["THUDM/ImageRewardDB"],
    )
    text = f"""# {folder.resolve().name}: ImageReward for transformers

Scores how well a picture answers a prompt, as people would judge it. Converted, without any change of a number, from an
official checkpoint of ImageReward (Xu et al. 2023, arXiv:2304.05977):

| file | sha256 |
|---|---|
| {source.name} | `{digest.hexdigest()}` |

Metadata names THUDM/ImageReward as the origin. If that file came out of a training of your own, put its origin, data and
licence there instead.

## Use

```python
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("{folder.resolve().name}", trust_remote_code=True)
print(model.score("a painting of the ocean", Image.open("ocean.png")))
```

With diffusers_ext installed, `diffusers_ext.load_reward("{folder.resolve().name}")` gives the same.

## What it is

BLIP with {config.vision_config.num_hidden_layers} image and {config.text_config.num_hidden_layers} text layers, {config.vision_config.image_size} px, and linear layers on its [CLS] token. It reads
{config.max_length} tokens of a prompt, and of a picture the middle square. Scores are normalised by mean {config.reward_mean:.4f} and
deviation {config.reward_std:.4f} of the authors' training set.

## Limits

Only differences under one prompt mean something: there is no threshold of a good picture. It inherits the taste of its
annotators and the prompts of DiffusionDB. Optimised against, it can be fooled: watch a second reward. The conversion
measured no accuracy.
"""
    path = folder / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(path)
    return path
