"""Options of the kinds of ControlNet and of its attention, and the combinations that cannot be."""

import importlib.util
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .options import group, option


@group("variant")
@dataclass
class VariantOptions:
    """What of a new ControlNet learns; `control_lora` and `control_blocks` say how."""

    lora_rank: int | None = option(
        None, "learn low-rank adapters of this rank on the copied encoder, which stays the base's own: small files"
    )
    lora_alpha: float | None = option(None, "adapters count alpha / rank; default: the rank, a factor of 1")
    lora_target_modules: list[str] | None = option(
        None,
        "layers to adapt, by the ends of their names, such as to_q to_v; default: all linear maps and convolutions",
    )
    controlnet_blocks: int | None = option(
        None, "copy and train only the first so many down blocks: smaller and faster, for conditions of fine structure"
    )
    only_mid_control: bool = option(False, "train the middle connection only: faster, for global conditions")
    unlock_decoder: bool = option(
        False, "train the U-Net's decoder too and save it as unet/; use a lower learning rate"
    )


@group("model")
@dataclass
class AttentionOptions:
    """Other attention kernels than PyTorch's own, which is memory-efficient already."""

    enable_xformers_memory_efficient_attention: bool = option(False, "attention by xformers; needs it, and a GPU")
    enable_npu_flash_attention: bool = option(False, "attention by Ascend's kernels; needs torch_npu")


def check_variants(options: Any) -> None:
    """Raise InputError for combinations that cannot be, before anything is loaded.

    options: `VariantOptions`, and controlnet_model_name_or_path.
    """
    if options.lora_rank is not None:
        if options.lora_rank < 1:
            raise InputError(f"--lora_rank must be at least 1, got {options.lora_rank}")
        if options.controlnet_model_name_or_path:
            raise InputError(
                "--lora_rank adapts a copy of the base's encoder, so that its small file can be put on any base; "
                "train on from --controlnet_model_name_or_path without it"
            )
        if options.controlnet_blocks:
            raise InputError(
                "--lora_rank adapts the whole encoder; leave out --controlnet_blocks, or train those fully"
            )
    for name in ("lora_alpha", "lora_target_modules"):
        if getattr(options, name) is not None and options.lora_rank is None:
            raise InputError(f"--{name} needs --lora_rank")
    if options.controlnet_blocks and options.only_mid_control:
        raise InputError("--only_mid_control trains the middle, --controlnet_blocks leaves it out; choose one")


def check_attention(options: Any) -> None:
    """Raise InputError if the attention kernels that options ask for are not installed. options: `AttentionOptions`."""
    instead = "leave it out: PyTorch's own attention is memory-efficient too"
    if options.enable_xformers_memory_efficient_attention and importlib.util.find_spec("xformers") is None:
        raise InputError(f"--enable_xformers_memory_efficient_attention: pip install xformers, or {instead}")
    if options.enable_npu_flash_attention and importlib.util.find_spec("torch_npu") is None:
        raise InputError(f"--enable_npu_flash_attention: torch_npu is not installed, which Ascend NPUs need; {instead}")


def set_attention(options: Any, *networks: Any) -> None:
    """Make diffusers models use the attention kernels that options ask for."""
    for network in networks:
        if options.enable_xformers_memory_efficient_attention:
            network.enable_xformers_memory_efficient_attention()
        if options.enable_npu_flash_attention:
            network.enable_npu_flash_attention()
