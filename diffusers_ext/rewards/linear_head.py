"""A reward on frozen CLIP embeddings: r(prompt, image) = head([i, t, i·t]), i and t the unit vectors of an open_clip model.

Only the head is trained and saved; the backbone is a reference that open_clip resolves when images are scored. With
embeddings computed once, training takes minutes on a CPU.

Shapes: N pairs, P prompts, D the width of the embeddings.
"""

import itertools

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..embeddings.backbones import Backbone, load_backbone
from .completeness import StrictLoading
from .interface import Reward


class LinearHeadConfig(PreTrainedConfig):
    """backbone: an open_clip model, see `backbones`. width: of its embeddings. head_sizes: hidden widths of an MLP;
    none is a linear head. reward_mean, reward_std: of the head's output on the training set."""

    model_type = "open_clip_reward"

    backbone: str = "ViT-B-32/laion2b_s34b_b79k"
    width: int = 512
    head_sizes: tuple[int, ...] | list[int] = ()
    reward_mean: float = 0.0
    reward_std: float = 1.0


class LinearHeadReward(StrictLoading, Reward, PreTrainedModel):
    """The head, and the backbone it refers to, which is loaded when it is first needed."""

    config_class = LinearHeadConfig
    base_model_prefix = ""
    differentiable = False
    _keep_in_fp32_modules_strict = ("head",)

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
            features = torch.cat([images, texts, images * texts], dim=1)
            raw = self.head(features.to(self.dtype)).squeeze(1).float()
        return (raw - self.config.reward_mean) / self.config.reward_std

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        texts = list(dict.fromkeys(prompts))
        embedded = dict(zip(texts, self.backbone.embed_texts(texts)))
        return self(self.backbone.embed_images(images), torch.stack([embedded[prompt] for prompt in prompts]))
