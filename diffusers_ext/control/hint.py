"""A ControlNet at step 0: a copy of the base's encoder, zero convolutions, and a hint network that carries its condition.

With PyTorch's default initialisation less than 1 % of the signal that reaches the first zero convolution depends on the
condition: each convolution loses about a factor of three of the difference between two images, while biases add a
constant. Amplifying that signal again is part of the wait for ControlNet's "sudden convergence"; benchmarks/hint_init.py
measures how much.
"""

from collections.abc import Mapping

import torch
from diffusers import ControlNetModel, ModelMixin
from torch import nn
from torch.nn import functional as F

from ..diffusion.base import family_of
from ..errors import InputError
from ..randomness import step_seed
from .blocks import cut

KAIMING_GAIN = 1.68  # keeps the variance through SiLU at unit scale


def new_controlnet(
    network: ModelMixin, vae_factor: int, conditioning_channels: int = 3, blocks: int | None = None
) -> ModelMixin:
    """Return a new ControlNet of a base's network, at step 0.

    vae_factor: pixels per latent position and side. blocks: copy only the first so many down blocks, see `control.blocks`.

    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.diffusion.base import load_base
    >>> type(new_controlnet(load_base(embedded_model()).unet, vae_factor=4)).__name__
    'ControlNetModel'
    """
    controlnet = family_of(network).new_control(network, vae_factor, conditioning_channels)
    return cut(controlnet, blocks) if blocks else controlnet


def check_architecture(control: Mapping, base: Mapping) -> None:
    """Raise InputError unless a ControlNet's configuration is that of a copy of the base's."""
    for name in ("block_out_channels", "cross_attention_dim", "in_channels"):
        own, wanted = (tuple(value) if isinstance(value, list) else value for value in (control[name], base[name]))
        if own != wanted:
            raise InputError(f"the ControlNet's {name} is {own}, the base's {wanted}; they do not belong together")


def check_fit(controlnet: ControlNetModel, network: ModelMixin, vae_factor: int, channels: int) -> None:
    """Raise InputError unless a ControlNet that is given is of the base's architecture and takes these conditions."""
    config = controlnet.config
    check_architecture(config, network.config)
    if 2 ** (len(config.conditioning_embedding_out_channels) - 1) != vae_factor:
        raise InputError(
            f"the ControlNet's hint network has {config.conditioning_embedding_out_channels}; this base needs a factor of {vae_factor}"
        )
    if config.conditioning_channels != channels:
        raise InputError(
            f"the ControlNet takes {config.conditioning_channels} condition channels, the data have {channels}"
        )


def init_hint(controlnet: ControlNetModel, method: str, conditions: torch.Tensor, seed: int) -> float:
    """Initialise the hint network in place and return how much of its last activation depends on the condition.

    Every method leaves the last convolution zero, so the ControlNet's output at step 0 is exactly zero.

    Args:
        method: "default" keeps PyTorch's; "kaiming" takes He's normal with gain 1.68 and zero bias; "data" takes
            orthogonal kernels and zero bias, each convolution scaled to unit standard deviation of its output on
            `conditions` about the per-channel mean, so that sparse outlines count (LSUV, Mishkin & Matas 2016).
        conditions: (N, channels, H, W) in [0, 1], N >= 2; some 64 are enough.

    Returns the ratio of the standard deviation between images to the mean absolute activation, see `signal_ratio`.
    Raises InputError if the conditions are all alike.

    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.diffusion.base import load_base
    >>> controlnet = new_controlnet(load_base(embedded_model()).unet, vae_factor=4)
    >>> conditions = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> plain = signal_ratio(controlnet, conditions)
    >>> init_hint(controlnet, 'data', conditions, seed=0) > 2 * plain
    True
    """
    hint = controlnet.controlnet_cond_embedding
    trunk = [hint.conv_in, *hint.blocks]
    cpu = torch.Generator().manual_seed(step_seed(seed, 0, 0))
    if method != "default":
        with torch.no_grad():
            x = conditions.to(hint.conv_in.weight)
            for convolution in trunk:
                _draw(convolution, method, cpu)
                x = convolution(x)
                if method == "data":
                    scale = (x - x.mean(dim=(0, 2, 3), keepdim=True)).std()
                    if not scale > 1e-6:
                        raise InputError(
                            "the conditions are all blank or all alike; --hint_init data needs conditions that differ"
                        )
                    convolution.weight /= scale
                    x /= scale
                x = F.silu(x)
    return signal_ratio(controlnet, conditions)


@torch.no_grad()
def transfer(controlnet: ControlNetModel, old: ModelMixin, new: ModelMixin) -> None:
    """Move a trained ControlNet to another base, in place: W ← W + (W_new − W_old) for each copied tensor.

    The offset of Zhang's released `tool_transfer_control.py`. Raises InputError if the two bases differ in shape.
    """
    old_weights, new_weights = old.state_dict(), new.state_dict()
    for name, weight in controlnet.state_dict().items():
        if name in old_weights:
            if name not in new_weights or not weight.shape == old_weights[name].shape == new_weights[name].shape:
                raise InputError(
                    f"{name}: the ControlNet and the two bases differ in shape; they must be of one architecture"
                )
            weight += (new_weights[name].float() - old_weights[name].float()).to(weight)


@torch.no_grad()
def signal_ratio(controlnet: ControlNetModel, conditions: torch.Tensor) -> float:
    """Standard deviation between images over the mean absolute activation, before the hint network's zero convolution."""
    hint = controlnet.controlnet_cond_embedding
    x = F.silu(hint.conv_in(conditions.to(hint.conv_in.weight)))
    for convolution in hint.blocks:
        x = F.silu(convolution(x))
    return (x.std(dim=0).mean() / x.abs().mean()).item()


def _draw(convolution: nn.Conv2d, method: str, generator: torch.Generator) -> None:
    if method == "kaiming":
        fan_in = convolution.weight[0].numel()
        nn.init.normal_(convolution.weight, std=KAIMING_GAIN / fan_in**0.5, generator=generator)
    else:
        nn.init.orthogonal_(convolution.weight, generator=generator)
    nn.init.zeros_(convolution.bias)
