"""The parts of an ImageReward: BLIP's encoders with torch's fused attention, the head, and what `forward` can return.

Copied beside the weights of saved reward models, so it imports nothing of its package.

Shapes: N pairs of a prompt of T tokens and an image of L patches, D and W the encoders' widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BlipTextModel, BlipVisionModel
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention
from transformers.utils import ModelOutput

from .reward_inputs import InputError

# The released model's encoders: what BLIP's configurations are filled with where they say nothing.
TEXT = {"num_attention_heads": 12, "is_decoder": True, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,
}


class PatchAttention(BlipAttention):
    """BLIP's attention over patches through torch's fused kernel, unless its config says eager."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.config._attn_implementation == "eager":
            return super().forward(hidden_states, **kwargs)
        images, tokens, _ = hidden_states.shape
        query, key, value = self.qkv(hidden_states).view(images, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.projection(attended.transpose(1, 2).reshape(hidden_states.shape)), None


class PromptAttention(BlipTextSelfAttention):
    """BLIP's attention of words to words, or of words to patches, through torch's fused kernel, unless its config says eager.

    (N, T, D) words may attend to the (M, L, W) patches of fewer images, N = M x prompts per image, sorted by image: an
    image's prompts then share its keys and values, computed once.
    """

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.config._attn_implementation == "eager":
            return self._eager(hidden_states, attention_mask, encoder_hidden_states, **kwargs)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.reshape(len(source), -1, self.num_attention_heads, self.attention_head_size).transpose(1, 2)
            for projected in (self.query(hidden_states), self.key(source), self.value(source))
        )
        mask = attention_mask if encoder_hidden_states is None else None
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).reshape(*hidden_states.shape[:2], self.all_head_size), None

    def _eager(self, hidden_states, attention_mask, patches, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        if patches is not None:
            patches = patches.repeat_interleave(len(hidden_states) // len(patches), dim=0)
        return super().forward(hidden_states, attention_mask, patches, **kwargs)


class ImageEncoder(BlipVisionModel):
    """BLIP's, which `ImageRewardModel` gives `PatchAttention`."""

    _supports_sdpa = True


class PromptEncoder(BlipTextModel):
    """BLIP's, which `ImageRewardModel` gives `PromptAttention`."""

    _supports_sdpa = True


class HeadLinear(nn.Linear):
    """A linear layer of the head, which computes in the type of its input: in float64, whatever its weights are in.

    A class of its own because it is initialised apart, and because accelerate's offloading brings weights to a module
    that is called, not to one whose weights are read.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))


class RewardHead(nn.Module):
    """Linear layers with dropout between them: (N, D) -> (N,).

    Computed in float64 whatever the weights are in: in float32 these five layers would round more than all that comes
    before them, and the work is nothing.
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        first, *between, last = [HeadLinear(*pair) for pair in zip(sizes, [*sizes[1:], 1])]
        dropouts = [0.2, 0.2, 0.1]  # after the first layers; none before the last two, as released
        modules = [first]
        for position, linear in enumerate(between):
            modules += [nn.Dropout(dropouts[position]), linear] if position < len(dropouts) else [linear]
        self.layers = nn.Sequential(*modules, last)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        kind = torch.float32 if features.device.type == "mps" else torch.float64  # MPS has none
        features = features.to(kind)
        with torch.autocast(features.device.type, enabled=False):
            return self.layers(features).squeeze(1)


@dataclass
class ImageRewardOutput(ModelOutput):
    """What `ImageRewardModel.forward` returns where more than rewards is asked for.

    rewards: (P, I) or (N,). hidden_states, attentions, cross_attentions: of the text encoder, by layer, for all I·P
    pairs, image by image. image_hidden_states, image_attentions: of the image encoder, for the I images.
    """

    rewards: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: tuple[torch.Tensor, ...] | None = None
    image_attentions: tuple[torch.Tensor, ...] | None = None


def records_asked(config: Any, states: bool | None, attentions: bool | None, pairs: bool) -> dict[str, bool]:
    """Return what `forward` is to return beside rewards, as the encoders take it; None means what the configuration says.

    pairs: whether prompts and images are paired by indices. Raises InputError for what cannot be returned.
    """
    states = config.output_hidden_states if states is None else states
    attentions = config.output_attentions if attentions is None else attentions
    if attentions and config._attn_implementation != "eager":
        raise InputError('the fused kernel has no attentions to return; load with attn_implementation="eager"')
    if (states or attentions) and pairs:
        raise InputError("hidden states and attentions are of every prompt with every image; leave the indices out")
    return {"output_hidden_states": bool(states), "output_attentions": bool(attentions)} if states or attentions else {}
