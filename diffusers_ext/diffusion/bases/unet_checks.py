"""Does a U-Net draw from text alone? Its relatives have the same parts and other inputs, and are refused by what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import CLIPTextConfig

from ...errors import InputError
from ...publish.model_files import read_json
from ..check import check_tokenizer, first_line

WANTED = "give a Stable Diffusion 1.x, 2.x or XL base folder"
CHANNELS = {  # what a U-Net of four latent channels takes beside them
    9: "a mask and a masked picture: an inpainting model",
    8: "a second picture: an instruct-pix2pix model, or another that edits",
    5: "a depth map: a depth-to-image model",
    7: "a small picture: an upscaler",
}
PLAIN = {  # fields of a text-to-image U-Net, and what any other value makes of it
    "time_cond_proj_dim": (None, "takes the guidance scale as an input (cond_proj): a latent consistency model (LCM)"),
    "class_embed_type": (None, "takes class embeddings: an unCLIP model, or one of class labels"),
    "num_class_embeds": (None, "takes class labels"),
    "encoder_hid_dim_type": (None, "takes embeddings of images beside those of text"),
    "encoder_hid_dim": (None, "projects its text embeddings by a layer that a ControlNet does not have"),
    "attention_type": ("default", "takes grounding boxes: a GLIGEN model"),
    "time_embedding_type": ("positional", "embeds the timestep in another way than a ControlNet does"),
    "timestep_post_act": (None, "embeds the timestep in another way than a ControlNet does"),
    "center_input_sample": (False, "centres its input, which a ControlNet does not"),
    "dual_cross_attention": (False, "attends to two texts"),
    "class_embeddings_concat": (False, "takes class embeddings"),
    "conv_in_kernel": (3, "has a first convolution of another size than a ControlNet's"),
}


def check_unet(path: Path, config: Mapping[str, Any], tells: str | None) -> None:
    """Raise InputError unless a U-Net's configuration is that of plain text-to-image; tells: its addition_embed_type."""
    for name, (plain, meaning) in PLAIN.items():
        if config.get(name, plain) != plain:
            raise InputError(f"{path}: {name} is {config[name]}: this U-Net {meaning}; {WANTED}")
    actual = config.get("addition_embed_type")
    if actual != tells:
        raise InputError(
            f"{path}: addition_embed_type is {actual}, expected {tells} beside these text encoders; {WANTED}"
        )


def check_latents(path: Path, vae: Mapping[str, Any]) -> None:
    """Raise InputError unless a U-Net, by its config.json, works on the latents of this autoencoder and nothing else."""
    unet, latent = read_json(path), vae["latent_channels"]
    takes, gives = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if takes == gives == latent:
        return
    if takes == gives:
        raise InputError(f"{path}: {takes} latent channels, the autoencoder has {latent}; they do not belong together")
    more = CHANNELS.get(takes, "more than a picture's latents") if gives == latent else "other than it gives"
    raise InputError(f"{path}: the U-Net takes {takes} channels and gives {gives}. It takes {more}; {WANTED}")


def check_texts(folder: Path, encoders: Sequence[str], path: Path, unet: Mapping[str, Any]) -> None:
    """Raise InputError unless tokenizers, text encoders and U-Net belong together; encoders: their parts' names."""
    configs = {part: _text_config(folder, part) for part in encoders}
    width = sum(config.hidden_size for config in configs.values())
    if unet.get("cross_attention_dim", 1280) != width:
        raise InputError(
            f"{path}: reads text of width {unet.get('cross_attention_dim')}, the text encoder gives {width}; they do not"
            " belong together"
        )
    if "text_encoder_2" in configs:
        _check_pooled(path, unet, configs["text_encoder_2"].projection_dim)


def pooled_width(unet: Mapping[str, Any]) -> int:
    """Return how much of a U-Net's added embedding is pooled text, by its config: all that the six time ids leave."""
    return unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]


def _text_config(folder: Path, part: str) -> CLIPTextConfig:
    try:
        config = CLIPTextConfig.from_pretrained(folder, subfolder=part)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / part / 'config.json'}: cannot be read ({first_line(error)})") from None
    check_tokenizer(folder / part.replace("text_encoder", "tokenizer"), config)
    return config


def _check_pooled(path: Path, unet: Mapping[str, Any], projection: int) -> None:
    fields = ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    missing = next((name for name in fields if not unet.get(name)), None)
    if missing:
        raise InputError(f"{path}: names no {missing}, which SDXL has; download it again")
    if pooled_width(unet) != projection:
        raise InputError(
            f"{path}: reads pooled text of width {pooled_width(unet)}, text_encoder_2 gives {projection}; they do not"
            " belong together"
        )
