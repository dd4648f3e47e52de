"""What training/train_controlnet.py asks for: model, variant, data, validation; and the combinations that cannot be."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError
from ..options import (
    COUNT,
    NATURAL,
    POSITIVE,
    SHARE,
    WEIGHT,
    DiffusionOptions,
    TrainingOptions,
    check_used,
    group,
    option,
)

if TYPE_CHECKING:
    from .objective import Variant

INTERPOLATIONS = ("nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


@group("model")
@dataclass
class ModelOptions:
    pretrained_model_name_or_path: str | None = option(
        None, "diffusers folder or Hub name of the base; default: the embedded model", path="read"
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, "another VAE than the base's: its folder or Hub name, such as one of SDXL's fixed for fp16", path="read"
    )
    controlnet_model_name_or_path: str | None = option(
        None, "start from this ControlNet instead of a copy of the base's encoder", path="read"
    )
    revision: str | None = option(
        None, "branch, tag or commit of the base on the Hub", requires={"pretrained_model_name_or_path": True}
    )
    variant: str | None = option(
        None, "weight files of the base, such as fp16", requires={"pretrained_model_name_or_path": True}
    )
    tokenizer_name: str | None = option(None, "folder or Hub name of another tokenizer than the base's", path="read")
    hint_init: str = option(
        "data",
        "initialisation of a new ControlNet's hint network",
        ("data", "kaiming", "default"),
        requires={"controlnet_model_name_or_path": False},
    )
    transfer_from: str | None = option(
        None,
        "base that controlnet_model_name_or_path was trained on: moves it to this base by the difference of weights",
        requires={"controlnet_model_name_or_path": True},
        path="read",
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations of both networks in the backward pass: less memory, slower"
    )


@group("data")
@dataclass
class DataOptions:
    train_data_dir: str | None = option(
        None,
        "image folder, two folders, .jsonl, .csv, .parquet or .tar files, or fill50k: see diffusers_ext/data/rows.py",
        path="read",
    )
    dataset_name: str | None = option(
        None,
        "data set on the Hub, instead of train_data_dir; needs the extra 'data'",
        requires={"train_data_dir": False},
        path="read",
    )
    dataset_config_name: str | None = option(
        None, "its configuration, where it has several", requires={"dataset_name": True}
    )
    cache_dir: str | None = option(None, "where Hub data sets are kept", requires={"dataset_name": True}, path="folder")
    image_column: str = option("image", "column of the target picture")
    conditioning_image_column: str = option("conditioning_image", "column of the condition")
    mask_column: str | None = option(
        None, "column of masks, white where the condition is to be marked as missing (-1): inpainting"
    )
    caption_column: str = option(
        "text", "column of the caption, or of a list of captions of which one is drawn each time"
    )
    max_train_samples: int | None = option(
        None, "use only the first so many rows", COUNT, instead="leave it out for all rows"
    )
    streaming: bool = option(
        False,
        "read a Hub data set, or .parquet files, row by row while training, without a copy or a check of all rows",
    )
    shuffle_buffer: int = option(
        1000, "rows that streaming keeps undecoded to draw from", COUNT, requires={"streaming": True}
    )
    on_bad_sample: str = option("error", "what to do with rows that cannot be used", ("error", "skip"))
    held_out_samples: int = option(
        16, "rows drawn by the seed and kept from training to measure on, at most a tenth of all", NATURAL
    )
    condition: str | None = option(
        None,
        "compute conditions from the pictures, after the cut: canny, scribble, ... (diffusers_ext/conditions/catalogue.py), or module:callable",
    )
    resolution: int = option(
        512,
        "side of the square training images, in pixels, a multiple of the model's factor; 1024 is usual for SDXL",
        COUNT,
    )
    aspect_buckets: bool = option(False, "keep pictures' shapes: cut to the nearest of many sizes of the square's area")
    random_crop: bool = option(False, "cut another part each time, instead of the middle")
    random_flip: bool = option(False, "mirror half of the samples, picture and condition together")
    image_interpolation_mode: str | None = option(
        None,
        "how pictures and conditions are scaled; default: lanczos down, bicubic up, label maps nearest",
        INTERPOLATIONS,
    )
    crops_coords_top_left_h: int | None = option(
        None,
        "tell SDXL that all pictures were cut this far from the top; default: the true place of each cut",
        NATURAL,
        instead="leave it out for the true place",
    )
    crops_coords_top_left_w: int | None = option(
        None, "the same from the left", NATURAL, instead="leave it out for the true place"
    )
    label_maps: bool = option(False, "conditions are label maps: scale them without mixing colours")
    encoder_cache_dir: str | None = option(
        None,
        "encode each picture and caption once and keep them here, for all runs; without it, at each step",
        path="folder",
    )
    proportion_empty_prompts: float = option(
        0.0, "share of prompts replaced by the empty one, drawn anew each epoch; the paper uses 0.5", SHARE
    )


@group("validation")
@dataclass
class ValidationOptions:
    validation_image: list[str] | None = option(
        None,
        "condition images to draw from; default: the first held-out rows",
        path="read",
    )
    validation_prompt: list[str] | None = option(None, "their prompts, one each or one for all", blank=True)
    validation_extractor: str | None = option(
        None,
        "what makes such a condition of a picture, to see whether drawn pictures obey: canny, ... or module:callable; default: --condition",
    )
    num_validation_images: int = option(
        4, "pictures drawn for each condition", COUNT, instead="give a large --validation_steps to draw only at the end"
    )
    validation_guidance_scale: float = option(
        2.0, "classifier-free guidance of the drawn samples; 7.5 is usual for SD 1.5, 5 for SDXL; 0 or 1: none", WEIGHT
    )


@group("variant")
@dataclass
class VariantOptions:
    """What of a new ControlNet learns; `control.lora` and `control.blocks` say how."""

    lora_rank: int | None = option(
        None,
        "learn low-rank adapters of this rank on the copied encoder, which stays the base's own: small files",
        COUNT,
        instead="leave it out to train all weights",
    )
    lora_alpha: float | None = option(
        None, "adapters count alpha / rank; default: the rank, a factor of 1", POSITIVE, requires={"lora_rank": True}
    )
    lora_target_modules: list[str] | None = option(
        None,
        "layers to adapt, by the ends of their names, such as to_q to_v; default: all linear maps and convolutions",
        requires={"lora_rank": True},
    )
    controlnet_blocks: int | None = option(
        None,
        "copy and train only the first so many down blocks: smaller and faster, for conditions of fine structure",
        COUNT,
        instead="leave it out for all blocks",
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


@dataclass
class ControlOptions(
    ValidationOptions,
    TrainingOptions,
    DiffusionOptions,
    DataOptions,
    VariantOptions,
    AttentionOptions,
    ModelOptions,
):
    """Everything that a ControlNet's training asks for."""


class NamesBase(Protocol):
    """Options that name a base."""

    pretrained_model_name_or_path: str | None


def base_name(options: NamesBase) -> str:
    """Return the folder or Hub name of the base, by default the embedded model."""
    from ..toy.embedded import embedded_model

    return options.pretrained_model_name_or_path or embedded_model()


def check_options(options: ControlOptions) -> None:
    """Refuse model folders of another kind, and options that exclude each other, before any data are read."""
    from ..diffusion.base import check_base, check_controlnet
    from ..diffusion.check import check_vae
    from ..diffusion.encoded import check_fixed
    from .previews import extractor_of

    check_variants(options)
    check_attention(options)
    check_base(base_name(options), options.variant)
    check_revision(options.revision, base_name(options))
    extractor_of(options)
    if options.condition and not options.label_maps:
        check_used(options, {"conditioning_image_column": {"condition": False}})
    if options.pretrained_vae_model_name_or_path:
        check_vae(options.pretrained_vae_model_name_or_path)
    if options.controlnet_model_name_or_path:
        check_controlnet(options.controlnet_model_name_or_path)
    if options.transfer_from:
        check_base(options.transfer_from)
    if options.encoder_cache_dir:
        check_fixed(
            random_crop=options.random_crop,
            random_flip=options.random_flip,
            streaming=options.streaming,
        )
    if options.streaming:
        if options.max_train_steps is None:
            raise InputError("--streaming needs --max_train_steps: the length of a stream is not known")
        if options.aspect_buckets or options.max_train_samples:
            raise InputError("--streaming cannot look ahead; leave out --aspect_buckets and --max_train_samples")
    if options.mask_column and options.condition == "inpaint":
        raise InputError("--condition inpaint draws masks of its own; with --mask_column give --condition identity")


def check_revision(revision: str | None, base: str) -> None:
    """Raise InputError for a revision of a base that is a folder here, not a repository on the Hub."""
    if revision and Path(base).is_dir():
        raise InputError(f"--revision {revision}: {base} is a folder, not a Hub repository; leave it out")


class NamesVariant(Protocol):
    """Options that name what of a ControlNet learns, and where it starts."""

    controlnet_model_name_or_path: str | None
    lora_rank: int | None
    controlnet_blocks: int | None
    only_mid_control: bool


def check_variants(options: NamesVariant) -> None:
    """Raise InputError for combinations that cannot be, before anything is loaded."""
    if options.lora_rank is not None:
        if options.controlnet_model_name_or_path:
            raise InputError(
                "--lora_rank adapts a copy of the base's encoder, so that its small file can be put on any base; "
                "train on from --controlnet_model_name_or_path without it"
            )
        if options.controlnet_blocks:
            raise InputError(
                "--lora_rank adapts the whole encoder; leave out --controlnet_blocks, or train those fully"
            )
    if options.controlnet_blocks and options.only_mid_control:
        raise InputError("--only_mid_control trains the middle, --controlnet_blocks leaves it out; choose one")


def variant_of(options: VariantOptions) -> "Variant":
    """Return what of the ControlNet learns."""
    from .objective import Variant

    return Variant(options.only_mid_control, options.unlock_decoder, options.controlnet_blocks)


def check_attention(options: AttentionOptions) -> None:
    """Raise InputError if the attention kernels that options ask for are not installed."""
    instead = "leave it out: PyTorch's own attention is memory-efficient too"
    if options.enable_xformers_memory_efficient_attention and importlib.util.find_spec("xformers") is None:
        raise InputError(f"--enable_xformers_memory_efficient_attention: pip install xformers, or {instead}")
    if options.enable_npu_flash_attention and importlib.util.find_spec("torch_npu") is None:
        raise InputError(f"--enable_npu_flash_attention: torch_npu is not installed, which Ascend NPUs need; {instead}")


def set_attention(options: AttentionOptions, *networks: Any) -> None:
    """Make diffusers models use the attention kernels that options ask for."""
    for network in networks:
        if options.enable_xformers_memory_efficient_attention:
            network.enable_xformers_memory_efficient_attention()
        if options.enable_npu_flash_attention:
            network.enable_npu_flash_attention()
