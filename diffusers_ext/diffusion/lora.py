"""A network that learns through low-rank adapters: put on, taken off, scaled, saved for `pipe.load_lora_weights`.

add_lora(network, rank=16)
with adapters_off(network):       # the base model, exactly, at no cost in memory
    ...
with adapters_merged(network):    # without a gradient: what the adapters make of it, at the base's cost
    ...
with LateLora(pipe, 0.5) as late:
    pipe(prompt, callback_on_step_end=late)   # the base composes, the adapters finish
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from ..errors import InputError
from .base import family_of
from .bases import network_of

ADAPTER = "default"  # peft's name for an adapter that has no other


def add_lora(network: ModelMixin, rank: int, alpha: float | None = None, targets: list[str] | None = None) -> None:
    """Freeze a network, in place, and put W + (alpha / rank) · B A over its attention (Hu et al. 2021, 4.1).

    B starts at zero, A is Gaussian of torch's global generator; adapters are kept in float32. alpha: default rank, a
    scale of 1. targets: ends of layers' names; default: those of the network's family. Raises InputError if they name no layer.

    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.diffusion.base import load_base
    >>> network = load_base(embedded_model()).unet
    >>> add_lora(network, rank=2)
    >>> all('lora' in name for name, weight in network.named_parameters() if weight.requires_grad)
    True
    """
    network.requires_grad_(False)
    names = list(targets or family_of(network).adapter_targets)
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=names)
    try:
        network.add_adapter(config, ADAPTER)
    except ValueError as error:
        raise InputError(f"--lora_target_modules {' '.join(names)}: {error}") from error
    cast_training_params(network, torch.float32)


def has_lora(network: ModelMixin) -> bool:
    return ADAPTER in getattr(network, "peft_config", {})


@contextlib.contextmanager
def adapters_off(network: ModelMixin) -> Iterator[None]:
    """Within the block the network is the base's."""
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()


@contextlib.contextmanager
def adapters_at(network: ModelMixin, strength: float) -> Iterator[None]:
    """Within the block the adapters count `strength` times; 0 is the base, 1 what was trained."""
    network.set_adapters(ADAPTER, strength)
    try:
        yield
    finally:
        network.set_adapters(ADAPTER, 1.0)


@contextlib.contextmanager
def adapters_merged(network: ModelMixin) -> Iterator[None]:
    """Within the block the adapters are part of the weights, which afterwards are the base's again, bit for bit.

    A forward pass then costs what the base's costs. No gradient may be wanted of it. Weights in half precision are left
    alone: a small update of a weight would be rounded away.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    if not weights or any(weight.dtype != torch.float32 for weight in weights):
        yield
        return
    kept = [weight.detach().clone() for weight in weights]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weight, before in zip(layers, weights, kept):
            layer.unmerge()
            weight.data.copy_(before)


def save_lora(network: ModelMixin, folder: Path) -> None:
    """Write the adapters as pytorch_lora_weights.safetensors, with rank and alpha, as `load_lora_weights` reads them."""
    family = family_of(network)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network, adapter_name=ADAPTER))
    metadata = _collate_lora_metadata({family.network: network})
    family.pipeline.save_lora_weights(folder, **{f"{family.network}_lora_layers": layers}, **metadata)


@torch.no_grad()
def restore_lora(network: ModelMixin, folder: Path) -> None:
    """Read back what `save_lora` wrote, in place and strictly."""
    saved, part = load_file(folder / LORA_WEIGHT_NAME_SAFE), family_of(network).network
    own = convert_state_dict_to_diffusers(get_peft_model_state_dict(network, adapter_name=ADAPTER))
    if saved.keys() != {f"{part}.{name}" for name in own}:
        raise InputError(f"{folder}: made with other --lora_rank or --lora_target_modules")
    for name, tensor in own.items():
        if saved[f"{part}.{name}"].shape != tensor.shape:
            raise InputError(f"{folder}: made with another --lora_rank; {name} has another shape")
        tensor.copy_(saved[f"{part}.{name}"])


class LateLora:
    """Apply a pipeline's loaded LoRA in the last part of the steps only, as a `callback_on_step_end`.

    What a reward teaches is mostly late detail, what it takes away is variety of composition, which the first steps decide
    (Sorokin et al. 2025, ImageReFL). start: the share of steps, 0 to 1, that the base does alone.

    Use it as a context, so that the LoRA is on again afterwards however a call ended.

    >>> import numpy as np
    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.diffusion.base import load_base
    >>> pipe = load_base(embedded_model())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> add_lora(pipe.unet, rank=2)
    >>> with LateLora(pipe, 0.5) as late:
    ...     image = pipe('red circle', num_inference_steps=2, callback_on_step_end=late).images[0]
    >>> image.size
    (64, 64)
    """

    def __init__(self, pipe: DiffusionPipeline, start: float = 0.5):
        if not 0 <= start <= 1:
            raise ValueError(f"start is a share of the steps, 0 to 1, got {start}")
        self.network, self.start = network_of(pipe), start

    def __enter__(self) -> "LateLora":
        self._switch(self.start <= 0)
        return self

    def __exit__(self, *_) -> None:
        self._switch(True)

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, values: dict) -> dict:
        """Called after step `step`: switch for the next one, which after the last step is the next call's first."""
        steps = pipe.num_timesteps
        self._switch((step + 1) % steps >= self.start * steps)
        return values

    def _switch(self, on: bool) -> None:
        if on:
            self.network.enable_adapters()
        else:
            self.network.disable_adapters()
