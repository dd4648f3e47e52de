"""Is a folder a base that a training understands? Found out from configurations and headers, in a second or two.

A base is a Stable Diffusion 1.x, 2.x or XL folder that draws from text alone. Its relatives have the same parts and other
inputs: they would load, and then crash or learn the wrong thing. Here they are refused, by what was found.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..errors import InputError
from ..publish.model_files import check_json, check_tensors, check_weights, read_json, variants_of
from .encoders import is_sdxl, parts_of, pooled_width, vae_config
from .paths import WHAT_FITS, noising_problem

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
NETWORKS = {kind.__name__: kind for kind in (UNet2DConditionModel, AutoencoderKL, ControlNetModel)}
TEXT_CLASSES = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}


def check_stable_diffusion(model: str, variant: str | None = None) -> None:
    """Raise InputError unless `model` is a whole Stable Diffusion 1.x, 2.x or XL base; Hub names are left to the Hub.

    variant: of its weight files, such as fp16.
    """
    folder = Path(model)
    if not _is_there(model):
        return
    index = _index(folder)
    parts = parts_of(folder)
    for part, wanted in parts.items():
        _check_class(folder, index, part, wanted)
    _check_scheduler(folder, index)
    unet = read_json(folder / "unet" / "config.json")
    _check_unet(folder / "unet" / "config.json", unet, xl=is_sdxl(folder))
    check_vae(str(folder / "vae"))
    check_channels(folder, vae_config(folder / "vae"))
    _check_texts(folder, unet)
    if variant and not any(variant in variants_of(folder / part) for part in parts):
        raise InputError(f"{folder}: no weights of the variant {variant}; leave out --variant")
    for part, wanted in parts.items():
        if not part.startswith("tokenizer"):
            _check_part_weights(folder / part, wanted, variant)


def check_vae(model: str) -> None:
    """Raise InputError unless `model` is an autoencoder's folder; Hub names are left to the Hub."""
    config = Path(model) / "config.json"
    if not _is_there(model):
        return
    if not config.exists():
        raise InputError(f"{model}: no config.json; give the folder of an AutoencoderKL, such as a model's vae/")
    record = read_json(config)
    if record.get("_class_name") != "AutoencoderKL":
        raise InputError(f"{config}: {record.get('_class_name')}, expected AutoencoderKL")
    if record.get("in_channels", 3) != 3 or record.get("out_channels", 3) != 3:
        raise InputError(f"{config}: {record.get('in_channels')} channels, expected the 3 of RGB pictures")


def check_controlnet(model: str) -> None:
    """Raise InputError unless `model` is the folder of a whole ControlNet; Hub names are left to the Hub."""
    folder = Path(model)
    if not _is_there(model):
        return
    if not folder.is_dir():
        raise InputError(
            f"{folder}: one file; give the folder of a ControlNet in diffusers' format, with its config.json"
        )
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "ControlNetModel":
        raise InputError(f"{folder / 'config.json'}: of a {config.get('_class_name')}, expected ControlNetModel")
    _check_part_weights(folder, "ControlNetModel", None)


def check_channels(folder: str | Path, vae: Mapping[str, Any]) -> None:
    """Raise InputError unless a base's U-Net works on the latents of this autoencoder, and on nothing else."""
    path = Path(folder) / "unet" / "config.json"
    unet, latent = read_json(path), vae["latent_channels"]
    takes, gives = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if takes == gives == latent:
        return
    if takes == gives:
        raise InputError(f"{path}: {takes} latent channels, the autoencoder has {latent}; they do not belong together")
    more = CHANNELS.get(takes, "more than a picture's latents") if gives == latent else "other than it gives"
    raise InputError(f"{path}: the U-Net takes {takes} channels and gives {gives}. It takes {more}; {WANTED}")


def _index(folder: Path) -> dict:
    """The model_index.json of a folder. Raises InputError that says what was given instead."""
    if folder.is_file():
        raise InputError(
            f"{folder}: one file, where a folder in diffusers' format is needed; make one: python -c 'from diffusers import"
            f' StableDiffusionPipeline as P; P.from_single_file("{folder}").save_pretrained("FOLDER")\''
        )
    if not (folder / "model_index.json").exists():
        inside = next((path.parent for path in sorted(folder.glob("*/model_index.json"))), None)
        above = folder.parent if (folder.parent / "model_index.json").is_file() else None
        instead = (
            f"give {inside or above}"
            if inside or above
            else ("give the folder that save_pretrained of a Stable Diffusion pipeline wrote")
        )
        raise InputError(f"{folder}: no model_index.json; {instead}")
    return read_json(folder / "model_index.json")


def _check_class(folder: Path, index: dict, part: str, wanted: str) -> None:
    """Raise InputError unless a part is of the class that a base has there, by model_index.json and by its own config."""
    entry = index.get(part)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found not in (wanted, wanted.replace("Tokenizer", "TokenizerFast")):
        raise InputError(
            f"{folder / 'model_index.json'}: the {part} of this {index.get('_class_name')} is {found}, expected {wanted};"
            f" {WANTED}"
        )
    if not (folder / part).is_dir():
        raise InputError(f"{folder / part}: missing, though model_index.json names it; the download is incomplete")
    if part.startswith("tokenizer"):
        return
    path = folder / part / "config.json"
    config = read_json(path)
    kind = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if kind is None or kind == wanted or (kind.startswith("CLIP") and wanted.startswith("CLIP")):
        return
    raise InputError(
        f"{path}: of a {kind}, expected {wanted}; the folder holds another part than model_index.json says"
    )


def _check_unet(path: Path, config: dict, xl: bool) -> None:
    for name, (plain, meaning) in PLAIN.items():
        if config.get(name, plain) != plain:
            raise InputError(f"{path}: {name} is {config[name]}: this U-Net {meaning}; {WANTED}")
    wanted, found = "text_time" if xl else None, config.get("addition_embed_type")
    if found != wanted:
        raise InputError(
            f"{path}: addition_embed_type is {found}, expected {wanted} beside these text encoders; {WANTED}"
        )


def _check_scheduler(folder: Path, index: dict) -> None:
    """Raise InputError unless the noise of the base's scheduler is one that a training can add."""
    entry, path = index.get("scheduler"), folder / "scheduler" / "scheduler_config.json"
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if str(named).startswith("EDM"):
        raise InputError(
            f"{folder / 'model_index.json'}: {named} is of continuous-time diffusion (Karras et al. 2022); not supported"
        )
    if named is None:
        raise InputError(f"{folder / 'model_index.json'}: names no scheduler; the download is incomplete")
    config = read_json(path)
    # diffusers makes the class of model_index.json from whatever file there is, and fills the rest with defaults.
    for name in dict.fromkeys((named, config.get("_class_name") or named)):
        kind = getattr(diffusers, str(name), None)
        if kind is None:
            raise InputError(f"{path}: diffusers {diffusers.__version__} has no {name}; {WHAT_FITS}")
        try:
            problem = noising_problem(kind.from_config(config))
        except (TypeError, ValueError, NotImplementedError, ImportError) as error:
            problem = f"cannot be made of this file ({_line(error)})"
        if problem:
            raise InputError(f"{path}: {name} {problem}; {WHAT_FITS}")
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise InputError(
            f"{path}: names no beta_schedule, so what noise the base knows is not known; download it again"
        )


def _check_texts(folder: Path, unet: dict) -> None:
    """Raise InputError unless tokenizers, text encoders and U-Net belong together."""
    widths, configs = 0, {}
    for part in [part for part in parts_of(folder) if part.startswith("text_encoder")]:
        try:
            config = configs[part] = CLIPTextConfig.from_pretrained(folder, subfolder=part)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{folder / part / 'config.json'}: cannot be read ({_line(error)})") from None
        widths += config.hidden_size
        check_tokenizer(folder / part.replace("text_encoder", "tokenizer"), config)
    if unet.get("cross_attention_dim", 1280) != widths:
        raise InputError(
            f"{folder / 'unet' / 'config.json'}: reads text of width {unet.get('cross_attention_dim')}, the text encoder gives"
            f" {widths}; they do not belong together"
        )
    if "text_encoder_2" in configs:
        lacking = [
            name for name in ("projection_class_embeddings_input_dim", "addition_time_embed_dim") if not unet.get(name)
        ]
        if lacking:
            raise InputError(
                f"{folder / 'unet' / 'config.json'}: names no {lacking[0]}, which SDXL has; download it again"
            )
        pooled = pooled_width(unet)
        if pooled != configs["text_encoder_2"].projection_dim:
            raise InputError(
                f"{folder / 'unet' / 'config.json'}: reads pooled text of width {pooled}, text_encoder_2 gives"
                f" {configs['text_encoder_2'].projection_dim}; they do not belong together"
            )


def check_tokenizer(folder: Path, encoder: CLIPTextConfig) -> CLIPTokenizer:
    """Return the tokenizer of a folder. Raises InputError for missing or cut files, and for more than the encoder takes."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise InputError(f"{folder}: neither tokenizer.json nor vocab.json; the download is incomplete")
    for path in sorted(folder.glob("*.json")):
        check_json(path)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare exceptions
        raise InputError(f"{folder}: the tokenizer cannot be read ({_line(error)}); download it again") from None
    rows = encoder.vocab_size
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond:
        shown = ", ".join(repr(token) for token in sorted(beyond, key=beyond.__getitem__)[:3])
        raise InputError(
            f"{folder}: {len(beyond)} tokens, such as {shown}, have no row in the text encoder's embedding of {rows}; resize it"
            " (text_encoder.resize_token_embeddings) and save it with its tokenizer, or take the tokens out"
        )
    if tokenizer.model_max_length > encoder.max_position_embeddings:
        raise InputError(
            f"{folder}: model_max_length is {tokenizer.model_max_length:.4g}, the text encoder has"
            f" {encoder.max_position_embeddings} positions; set it in tokenizer_config.json"
        )
    return tokenizer


def _check_part_weights(folder: Path, kind: str, variant: str | None) -> None:
    """Raise InputError unless the weight files of a part are whole and hold what its config.json asks for."""
    files = check_weights(folder, variant)
    with torch.device("meta"):
        if kind in NETWORKS:
            model = NETWORKS[kind].from_config(NETWORKS[kind].load_config(folder))
        else:
            model = TEXT_CLASSES[kind](CLIPTextConfig.from_pretrained(folder))
    check_tensors(files, {name: value.shape for name, value in model.state_dict().items()})


def _is_there(model: str) -> bool:
    """Say whether a model is a folder here; InputError if it is neither that nor a name on the Hub."""
    if Path(model).exists():
        return True
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return False
    raise InputError(f"{model}: no such folder; give a diffusers folder or an owner/name on the Hub")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
