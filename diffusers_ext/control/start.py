"""The ControlNet that a training starts from: a new one on its base, or one that is given."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import ControlNetModel, UNet2DConditionModel

from ..data.pairs import Pairs
from ..diffusion.base import BaseModel, download_errors
from ..diffusion.encoders import check_resolution, far_above_native, vae_scale_factor
from ..errors import InputError
from ..publish.model_files import variants_of
from .blocks import check_unused
from .hint import check_fit, init_hint, new_controlnet, transfer
from .lora import add_lora
from .options import set_attention


def start_controlnet(options: Any, base: BaseModel, unet: UNet2DConditionModel, shown: Pairs) -> ControlNetModel:
    """Load the ControlNet that is given, or copy the base's encoder behind a hint network that is ready to carry.

    options: of `control.options`, with seed. shown: whose first conditions initialise the hint network.
    Raises InputError if ControlNet, base and data do not belong together.
    """
    check_resolution(options.resolution, base.vae, unet.config)
    if warning := far_above_native(options.resolution, base.vae, unet.config):
        PartialState().print(warning)
    if shown.told_corner and unet.config.addition_embed_type != "text_time":
        raise InputError(
            "--crops_coords_top_left_h, --crops_coords_top_left_w: only SDXL is told of cuts; leave them out"
        )
    conditions, factor = shown.sample_conditions(64), vae_scale_factor(base.vae)
    source = unet  # what learns starts from weights that were never rounded to half precision
    if unet.dtype != torch.float32 and not options.lora_rank:
        variant = options.variant if options.variant in variants_of(Path(base.folder) / "unet") else None
        source = UNet2DConditionModel.from_pretrained(base.folder, subfolder="unet", variant=variant)
    if options.controlnet_model_name_or_path:
        with download_errors(options.controlnet_model_name_or_path):
            controlnet = ControlNetModel.from_pretrained(options.controlnet_model_name_or_path)
        check_fit(controlnet, unet, factor, conditions.shape[1])
        if options.transfer_from:
            with download_errors(options.transfer_from):
                old = UNet2DConditionModel.from_pretrained(options.transfer_from, subfolder="unet")
            transfer(controlnet, old, source)
        if options.controlnet_blocks:
            check_unused(controlnet, options.controlnet_blocks)
    else:
        torch.manual_seed(options.seed)
        controlnet = new_controlnet(source, factor, conditions.shape[1], options.controlnet_blocks)
        ratio = init_hint(controlnet, options.hint_init, conditions, options.seed)
        PartialState().print(
            f"hint network ({options.hint_init}): its signal varies with the condition by {ratio:.2g} of its size"
        )
    if options.lora_rank:
        add_lora(controlnet, unet, options.lora_rank, options.lora_alpha, options.lora_target_modules)
    set_attention(options, controlnet, unet)
    if options.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    return controlnet
