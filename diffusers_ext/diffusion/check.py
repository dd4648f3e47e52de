"""Is a folder whole, and of the classes that its family has? Found out from configurations and headers, in a second or two."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import SchedulerMixin
from transformers import CLIPTextConfig, CLIPTokenizer

from ..errors import InputError
from ..publish.model_files import check_json, check_tensors, check_weights, read_json, variants_of


def is_folder(model: str) -> bool:
    """Whether a model is a folder here; InputError if it is neither that nor a name on the Hub."""
    if Path(model).exists():
        return True
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return False
    raise InputError(f"{model}: no such folder; give a diffusers folder or an owner/name on the Hub")


def read_index(folder: Path) -> dict[str, Any]:
    """Return the model_index.json of a folder. Raises InputError that says what was given instead."""
    if folder.is_file():
        raise InputError(
            f"{folder}: one file, where a folder in diffusers' format is needed; make one: python -c 'from diffusers import"
            f' StableDiffusionPipeline as P; P.from_single_file("{folder}").save_pretrained("FOLDER")\''
        )
    if not (folder / "model_index.json").exists():
        inside = next((path.parent for path in sorted(folder.glob("*/model_index.json"))), None)
        above = folder.parent if (folder.parent / "model_index.json").is_file() else None
        meant = inside or above or "the folder that save_pretrained of a text-to-image pipeline wrote"
        raise InputError(f"{folder}: no model_index.json; give {meant}")
    return read_json(folder / "model_index.json")


def check_vae(model: str) -> None:
    """Raise InputError unless `model` is an autoencoder's folder; Hub names are left to the Hub."""
    config = Path(model) / "config.json"
    if not is_folder(model):
        return
    if not config.exists():
        raise InputError(f"{model}: no config.json; give the folder of an AutoencoderKL, such as a model's vae/")
    record = read_json(config)
    if record.get("_class_name") != "AutoencoderKL":
        raise InputError(f"{config}: {record.get('_class_name')}, expected AutoencoderKL")
    if record.get("in_channels", 3) != 3 or record.get("out_channels", 3) != 3:
        raise InputError(f"{config}: {record.get('in_channels')} channels, expected the 3 of RGB pictures")


def check_parts(folder: Path, index: Mapping[str, Any], parts: Mapping[str, str], wanted: str) -> None:
    """Raise InputError unless each part of a folder is there and of its class; wanted: the remedy."""
    for part, kind in parts.items():
        _check_class(folder, index, part, kind, wanted)


def check_variant(folder: Path, parts: Iterable[str], variant: str) -> None:
    """Raise InputError unless a part has weight files of this variant, such as fp16."""
    if not any(variant in variants_of(folder / part) for part in parts):
        raise InputError(f"{folder}: no weights of the variant {variant}; leave out --variant")


def check_scheduler(
    folder: Path, index: Mapping[str, Any], problem_of: Callable[[SchedulerMixin], str | None], remedy: str
) -> None:
    """Raise InputError unless the noise of the base's scheduler is one that a training can add.

    problem_of: returns why a scheduler's noise is not; remedy: what to do then.
    """
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
            raise InputError(f"{path}: diffusers {diffusers.__version__} has no {name}; {remedy}")
        try:
            problem = problem_of(kind.from_config(config))
        except (TypeError, ValueError, NotImplementedError, ImportError) as error:
            problem = f"cannot be made of this file ({first_line(error)})"
        if problem:
            raise InputError(f"{path}: {name} {problem}; {remedy}")


def check_tokenizer(folder: Path, encoder: CLIPTextConfig) -> CLIPTokenizer:
    """Return the tokenizer of a folder. Raises InputError for missing or cut files, and for more than the encoder takes."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise InputError(f"{folder}: neither tokenizer.json nor vocab.json; the download is incomplete")
    for path in sorted(folder.glob("*.json")):
        check_json(path)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare exceptions
        raise InputError(f"{folder}: the tokenizer cannot be read ({first_line(error)}); download it again") from None
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


def check_part_weights(folder: Path, kind: str, variant: str | None) -> None:
    """Raise InputError unless the weight files of a part are whole and hold what its config.json asks for.

    kind: the name of its class in diffusers or transformers.
    """
    files = check_weights(folder, variant)
    with torch.device("meta"):
        if hasattr(diffusers, kind):
            network = getattr(diffusers, kind)
            model = network.from_config(network.load_config(folder))
        else:
            encoder = getattr(transformers, kind)
            model = encoder(encoder.config_class.from_pretrained(folder))
    check_tensors(files, {name: value.shape for name, value in model.state_dict().items()})


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_class(folder: Path, index: Mapping[str, Any], part: str, kind: str, wanted: str) -> None:
    """Raise InputError unless a part is of its class, by model_index.json and by its own config."""
    entry = index.get(part)
    actual = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if actual not in (kind, kind.replace("Tokenizer", "TokenizerFast")):
        raise InputError(
            f"{folder / 'model_index.json'}: the {part} of this {index.get('_class_name')} is {actual}, expected {kind};"
            f" {wanted}"
        )
    if not (folder / part).is_dir():
        raise InputError(f"{folder / part}: missing, though model_index.json names it; the download is incomplete")
    if part.startswith("tokenizer"):
        return
    path = folder / part / "config.json"
    config = read_json(path)
    actual = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if actual is None or actual == kind or (actual.startswith("CLIP") and kind.startswith("CLIP")):
        return
    raise InputError(
        f"{path}: of a {actual}, expected {kind}; the folder holds another part than model_index.json says"
    )
