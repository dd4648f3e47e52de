"""A reward on frozen CLIP embeddings: r(prompt, image) = head([i, t, i·t]), i and t the unit vectors of an open_clip model.

Only the head is trained and saved; the backbone is a reference that open_clip resolves when images are scored. With
embeddings computed once, training takes minutes on a CPU.

Shapes: N pairs, P prompts, D the width of the embeddings.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import InputError
from .interface import Reward
from .reward_inputs import read_rgb


class LinearHeadConfig(PreTrainedConfig):
    """backbone: an open_clip model, see `load_backbone`. width: of its embeddings. head_sizes: hidden widths of an MLP;
    none is a linear head. reward_mean, reward_std: of the head's output on the training set."""

    model_type = "open_clip_reward"

    backbone: str = "ViT-B-32/laion2b_s34b_b79k"
    width: int = 512
    head_sizes: tuple[int, ...] | list[int] = ()
    reward_mean: float = 0.0
    reward_std: float = 1.0


class Backbone:
    """A frozen open_clip model with its preprocessing and tokenizer."""

    def __init__(self, model: nn.Module, preprocess: Any, tokenizer: Any):
        self.model, self.preprocess, self.tokenizer = model.eval().requires_grad_(False), preprocess, tokenizer

    @torch.no_grad()
    def embed_images(self, images: Sequence[Any]) -> torch.Tensor:
        """Return the unit embeddings of images in any form of reward_inputs, (N, D) float32."""
        device = next(self.model.parameters()).device
        pixels = torch.stack([self.preprocess(_picture(image)) for image in images]).to(device)
        return F.normalize(self.model.encode_image(pixels).float(), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the unit embeddings of prompts, (P, D) float32."""
        device = next(self.model.parameters()).device
        return F.normalize(self.model.encode_text(self.tokenizer(list(texts)).to(device)).float(), dim=1)


def _picture(image: Any) -> Image.Image:
    return to_pil_image(image) if isinstance(image, torch.Tensor) else read_rgb(image)


def is_open_clip(name: str) -> bool:
    """Say whether a name means an open_clip model: a folder with open_clip_config.json, hf-hub:owner/name, or model/tag."""
    import open_clip

    return (
        (Path(name) / "open_clip_config.json").is_file()
        or name.startswith("hf-hub:")
        or tuple(name.split("/", 1)) in open_clip.list_pretrained()
    )


def load_backbone(name: str) -> Backbone:
    """Load an open_clip model with its trained weights; InputError where it cannot be had."""
    import open_clip

    quick_gelu = False
    if Path(name).is_dir():
        model_name, tag = f"local-dir:{Path(name).resolve()}", None
    elif name.startswith("hf-hub:"):
        model_name, tag = name, None
    else:
        model_name, tag = name.split("/", 1)
        quick_gelu = open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu", False)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(model_name, tag, force_quick_gelu=quick_gelu)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name}: open_clip cannot load it ({reason}); give a folder with open_clip_config.json and weights, "
            "hf-hub:owner/name, or model/tag of open_clip.list_pretrained()"
        ) from None
    return Backbone(model, preprocess, open_clip.get_tokenizer(model_name))


class LinearHeadReward(Reward, PreTrainedModel):
    """The head, and the backbone it refers to, which is loaded when it is first needed."""

    config_class = LinearHeadConfig
    base_model_prefix = ""
    differentiable = False

    def __init__(self, config: LinearHeadConfig):
        super().__init__(config)
        sizes = [3 * config.width, *config.head_sizes, 1]
        layers: list[nn.Module] = []
        for first, second in itertools.pairwise(sizes):
            layers += [nn.Linear(first, second), nn.GELU()]
        self.head = nn.Sequential(*layers[:-1])
        self._backbone: Backbone | None = None  # no module of ours: it is neither saved nor trained
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)

    @property
    def backbone(self) -> Backbone:
        if self._backbone is None:
            self._backbone = load_backbone(self.config.backbone)
        self._backbone.model.to(self.device)
        return self._backbone

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the rewards of unit embeddings, (N, D) and (N, D) -> (N,) float32."""
        scale = self.config.width**0.5  # entries of a unit vector are about 1/√D: bring all parts to 1
        images, texts = scale * images.float(), scale * texts.float()
        with torch.autocast(images.device.type, enabled=False):
            raw = self.head(torch.cat([images, texts, images * texts], dim=1)).squeeze(1)
        return (raw - self.config.reward_mean) / self.config.reward_std

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        texts = list(dict.fromkeys(prompts))
        embedded = dict(zip(texts, self.backbone.embed_texts(texts)))
        return self(self.backbone.embed_images(images), torch.stack([embedded[prompt] for prompt in prompts]))
