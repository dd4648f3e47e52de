"""An open_clip model of a timm vision tower and a Hugging Face text tower: made, embedded once, saved as open_clip loads it.

    towers = new_model("timm:tf_efficientnet_lite0@weights.safetensors", "path/to/all-MiniLM-L6-v2")
    save(towers, "models/lit")                                # open_clip.create_model("local-dir:models/lit")

Shapes: N pictures or texts, L tokens, V and T the towers' widths.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache import Batches, Digests, Store, digest_of, digest_of_tensors
from ..data.files import File
from ..embeddings.backbones import Backbone, features, load_backbone
from ..errors import InputError

TEXTS = 64  # texts encoded at once


@dataclass
class Towers:
    """An `open_clip.CustomTextCLIP`, its tokenizer and configuration, and its vision tower as a backbone of its own."""

    model: Any
    tokenizer: Any
    config: dict
    vision: Backbone


def new_model(
    vision: str, text: str, width: int = 256, projection: str = "linear", context_length: int = 64, seed: int = 0
) -> Towers:
    """Join two trained towers by new projections into one space of `width` dimensions, in float32, on the CPU.

    vision: a reference timm:... of `backbones`; its pictures are not cut, as crop_pct=1 says, since open_clip has no such
    thing. text: a transformers folder or Hub name, pooled by the mean. projection: "linear" or "mlp". Raises InputError
    where a tower cannot be had.
    """
    import open_clip
    from open_clip.model import set_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg

    if not vision.startswith("timm:"):
        raise InputError(f"--vision_tower {vision}: give timm:model.tag, timm:folder or timm:model@weights.safetensors")
    backbone = load_backbone(f"{vision},crop_pct=1.0")
    size = backbone.prepared["size"][0]
    source = str(Path(text).resolve()) if Path(text).is_dir() else text
    config = {
        "embed_dim": width,
        "vision_cfg": {
            "timm_model_name": backbone.model.default_cfg["architecture"],
            "timm_pool": "",
            "timm_proj": projection,
            "image_size": size,
        },
        "text_cfg": {
            "hf_model_name": source,
            "hf_tokenizer_name": source,
            "hf_proj_type": projection,
            "hf_pooler_type": "mean_pooler",
            "context_length": context_length,
        },
    }
    torch.manual_seed(seed)
    try:
        model = open_clip.CustomTextCLIP(**copy.deepcopy(config)).float()
        tokenizer = open_clip.tokenizer.HFTokenizer(source, context_length=context_length)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--text_tower {text}: {str(error).splitlines()[0]}; give a transformers folder") from None
    model.visual.trunk.load_state_dict(backbone.model.state_dict())
    prepared = {name: backbone.prepared[name] for name in ("mean", "std", "interpolation")}
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=size, **prepared)))
    model.visual.trunk.requires_grad_(False)
    model.text.transformer.requires_grad_(False)
    return Towers(model, tokenizer, config, backbone)


class Encoders:
    """Pictures and texts as `ImageTextObjective` takes them, each through its frozen tower once, for all runs.

    text_tower: whether that one learns: texts are then token ids, (N, L), else its pooled output, (N, T). Pictures are
    the vision tower's pooled output, (N, V). All on the CPU.
    """

    def __init__(self, towers: Towers, cache_dir: str | Path, text_tower: bool, device: torch.device, show: bool):
        self.towers, self.cache_dir, self.text_tower, self.show = towers, cache_dir, text_tower, show
        towers.vision.model.to(device)
        towers.model.to(device)

    def images(self, files: Sequence[File]) -> torch.Tensor:
        return torch.from_numpy(features(self.towers.vision, files, self.cache_dir, show=self.show))

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        if self.text_tower:
            return self.towers.tokenizer(list(texts))
        return text_activations(self.towers, texts, self.cache_dir, self.show)


def text_activations(towers: Towers, texts: Sequence[str], cache_dir: str | Path, show: bool = False) -> torch.Tensor:
    """Return the text tower's pooled output, (N, T) float32 on the CPU, each text encoded once, for all runs."""
    text, digests = towers.model.text, Digests(cache_dir)
    weights = digest_of_tensors([text.transformer])
    about = {"tokenizer": _vocabulary(towers), "context_length": towers.config["text_cfg"]["context_length"]}
    store = Store(cache_dir, {"value": "pooled-texts", "weights": weights, **about}, digests)
    keys = [digest_of(each) for each in texts]
    missing = set(store.missing(keys))
    new = sorted({key: each for key, each in zip(keys, texts) if key in missing}.items(), key=lambda item: len(item[1]))
    device = next(text.parameters()).device

    @torch.no_grad()
    def encode(positions: range) -> torch.Tensor:
        ids = towers.tokenizer([new[position][1] for position in positions]).to(device)
        mask = (ids != text.config.pad_token_id).long()
        longest = int(mask.sum(1).max())  # what all pad adds nothing but time
        ids, mask = ids[:, :longest], mask[:, :longest]
        return text.pooler(text.transformer(input_ids=ids, attention_mask=mask), mask).float()

    store.fill([key for key, _ in new], Batches(len(new), TEXTS, encode), show)
    digests.save()
    return torch.from_numpy(np.stack([store[key].numpy() for key in keys]))


def _vocabulary(towers: Towers) -> str:
    """The digest of the tokenizer, without the padding and truncation that it remembers from its last call."""
    described = json.loads(towers.tokenizer.tokenizer.backend_tokenizer.to_str())
    return digest_of(json.dumps({**described, "padding": None, "truncation": None}))


def save(towers: Towers, folder: str | Path, name: str | None = None) -> Path:
    """Write the model as open_clip's own loaders read it: configuration, safetensors, tokenizer, and the text tower's config.

    open_clip looks for the text tower's configuration under the Hub name that the tower was given by, else under `name`,
    owner/name of the repository this goes to, else at the folder's path; `load_backbone` finds it in the folder anyway.
    """
    from open_clip.push_to_hf_hub import save_for_hf

    folder = Path(folder).resolve()
    config = copy.deepcopy(towers.config)
    if Path(config["text_cfg"]["hf_model_name"]).is_dir():
        config["text_cfg"] |= dict.fromkeys(("hf_model_name", "hf_tokenizer_name"), name or str(folder))
    save_for_hf(towers.model, towers.tokenizer, config, folder, safe_serialization=True)
    towers.model.text.config.save_pretrained(folder)
    return folder
