"""The ControlNet that a training starts from: a new one on its base, or one that is given."""

import torch
from accelerate import PartialState
from diffusers import ModelMixin

from ..data.pairs import Pairs
from ..diffusion.base import Base
from ..diffusion.files import BaseFiles, download_errors
from ..errors import InputError
from .blocks import check_unused
from .hint import check_fit, init_hint, new_controlnet, transfer
from .lora import add_lora
from .options import ControlOptions, set_attention


def start_controlnet(options: ControlOptions, files: BaseFiles, base: Base, shown: Pairs) -> ModelMixin:
    """Load the ControlNet that is given, or copy the base's encoder behind a hint network that is ready to carry.

    shown: the pairs whose first conditions initialise the hint network.
    Raises InputError if ControlNet, base and data do not belong together.
    """
    network, family = base.network, base.family
    if warning := files.check_resolution(options.resolution, network.config):
        PartialState().print(warning)
    if shown.told_corner and not family.reads_time_ids:
        raise InputError(
            "--crops_coords_top_left_h, --crops_coords_top_left_w: only SDXL is told of cuts; leave them out"
        )
    conditions = shown.sample_conditions(64)
    source = network  # what learns starts from weights that were never rounded to half precision
    if network.dtype != torch.float32 and not options.lora_rank:
        source = files.load_network()
    if options.controlnet_model_name_or_path:
        controlnet = _given(options, files, source, conditions.shape[1])
    else:
        controlnet = _new(options, files, source, conditions)
    if options.lora_rank:
        add_lora(controlnet, network, options.lora_rank, options.lora_alpha, options.lora_target_modules)
    set_attention(options, controlnet, network)
    if options.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        network.enable_gradient_checkpointing()
    return controlnet


def _given(options: ControlOptions, files: BaseFiles, source: ModelMixin, channels: int) -> ModelMixin:
    """Load --controlnet_model_name_or_path, moved to this base where --transfer_from names its own."""
    family, name = files.family, options.controlnet_model_name_or_path
    assert name is not None
    with download_errors(name):
        controlnet = family.control_network.from_pretrained(name)
    check_fit(controlnet, source, files.vae_factor, channels)
    if options.transfer_from:
        with download_errors(options.transfer_from):
            old = family.network_class.from_pretrained(options.transfer_from, subfolder=family.network)
        transfer(controlnet, old, source)
    if options.controlnet_blocks:
        check_unused(controlnet, options.controlnet_blocks)
    return controlnet


def _new(options: ControlOptions, files: BaseFiles, source: ModelMixin, conditions: torch.Tensor) -> ModelMixin:
    """Copy the base's encoder, and initialise the hint network on conditions (N, C, H, W)."""
    torch.manual_seed(options.seed)
    controlnet = new_controlnet(source, files.vae_factor, conditions.shape[1], options.controlnet_blocks)
    ratio = init_hint(controlnet, options.hint_init, conditions, options.seed)
    PartialState().print(
        f"hint network ({options.hint_init}): its signal varies with the condition by {ratio:.2g} of its size"
    )
    return controlnet
