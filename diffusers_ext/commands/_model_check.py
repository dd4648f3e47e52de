"""Is a downloaded model whole? Each part is loaded as a training would load it, one at a time, before hours are spent.

    check_model("models/stable-diffusion-v1-5")     # a diffusers folder, part by part
    check_model("models/image-reward")              # a reward, by any name that load_reward takes
    check_model("ImageReward.pt")                   # an official checkpoint: every key and shape

Prints a line for each part; all that is wrong is raised together, at the end.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..publish.model_files import check_downloaded, check_json, check_weights, read_json, variants_of

LIBRARIES = ("diffusers", "transformers")
SHOWN = 3  # names of weights in a message


def check_model(path: str, variant: str | None = None, say: Callable[[str], None] = print) -> None:
    """Check a model; variant: of its weight files, such as fp16.

    Raises InputError with everything that is wrong: parts that are missing, files that cannot be read, weights that are
    missing, of another shape or not finite, and for Stable Diffusion parts that do not fit each other.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        problems = _check_pipeline(folder, variant, say)
    elif folder.suffix in (".pt", ".pth", ".ckpt", ".bin") and folder.is_file():
        problems = _attempt(lambda: _check_official(folder, say))
    elif (folder / "config.json").is_file() and "_class_name" in _config(folder):
        problems = _check_part(folder, "diffusers", _config(folder)["_class_name"], variant, say)
    else:
        problems = _attempt(lambda: _check_reward(path, say))
    if problems:
        raise InputError("\n".join(problems))
    say("whole: every part loads, and every weight is there and finite")


def _check_pipeline(folder: Path, variant: str | None, say: Callable[[str], None]) -> list[str]:
    try:
        index = read_json(folder / "model_index.json")
    except InputError as error:
        return [str(error)]
    say(
        f"{folder}: {index.get('_class_name')}, saved by diffusers {index.get('_diffusers_version', 'of unknown version')}"
    )
    problems = []
    for name, kind in index.items():
        if not isinstance(kind, list) or name.startswith("_"):
            continue
        library, cls = kind
        if library is None:
            say(f"  {name}: left out")
        elif library not in LIBRARIES:
            say(f"  {name}: {cls} of {library}, code of its own: not loaded here")
        else:
            problems += _check_part(folder / name, library, cls, variant, say)
    return problems or _fit(folder, index, variant)


def _fit(folder: Path, index: dict, variant: str | None) -> list[str]:
    """Return what keeps the folder of a known base from being one; other pipelines are not looked at."""
    from ..diffusion.base import check_base
    from ..diffusion.bases import FAMILIES

    if index.get("_class_name") not in {family.pipeline.__name__ for family in FAMILIES}:
        return []
    return _attempt(lambda: check_base(str(folder), variant))


def _check_part(folder: Path, library: str, name: str, variant: str | None, say: Callable[[str], None]) -> list[str]:
    if not folder.is_dir():
        return [f"{folder}: missing; download the whole repository, or this folder of it"]
    cls = getattr(importlib.import_module(library), name, None)
    if cls is None:
        return [
            f"{folder}: {library} has no {name}; upgrade it, or correct the name in model_index.json or config.json"
        ]
    try:
        part, problems = _load(cls, folder, variant)
    except InputError as error:
        return [str(error)]
    except Exception as error:  # each library and file format raises errors of its own
        return [f"{folder}: {name} cannot be loaded: {str(error).strip() or type(error).__name__}"]
    say(f"  {folder.name}: {name}{_size(part)}{_pickles(folder)}")
    return problems


def _load(cls: Any, folder: Path, variant: str | None) -> tuple[Any, list[str]]:
    """Load a part of a pipeline; return it and what its weights lack."""
    for path in sorted(folder.glob("*.json")):
        check_json(path)
    for path in sorted(folder.glob("*.txt")):
        check_downloaded(path)
    if not hasattr(cls, "save_pretrained") or not issubclass(cls, torch.nn.Module):
        return cls.from_pretrained(folder), []
    check_weights(folder, variant)
    variant = variant if variant in variants_of(folder) else None  # as diffusers' pipelines do
    safe = True if any(folder.glob("*.safetensors")) else None
    part, info = cls.from_pretrained(folder, variant=variant, use_safetensors=safe, output_loading_info=True)
    problems = [
        f"{folder}: {len(info[kind])} weights {what}, such as {', '.join(map(_name, sorted(info[kind])[:SHOWN]))}"
        for kind, what in (("missing_keys", "are missing"), ("mismatched_keys", "are of another shape"))
        if info[kind]
    ]
    return part, problems + _not_finite(part, folder)


def _name(key: Any) -> str:
    return key if isinstance(key, str) else str(key[0])


def _not_finite(part: torch.nn.Module, where: Path | str) -> list[str]:
    bad = [name for name, value in part.state_dict().items() if not (value.is_meta or value.isfinite().all())]
    return [f"{where}: {len(bad)} weights are not finite, such as {', '.join(bad[:SHOWN])}"] if bad else []


def _check_official(path: Path, say: Callable[[str], None]) -> None:
    from ..rewards.modeling_image_reward import ImageRewardModel

    model = ImageRewardModel.from_official_checkpoint(path)
    _raise(_not_finite(model, path))
    say(
        f"{path}: ImageReward{_size(model)}; make a folder of it: diffusers-ext convert-reward {path} --output_dir FOLDER"
    )


def _check_reward(path: str, say: Callable[[str], None]) -> None:
    from ..rewards.loading import load_reward

    reward = load_reward(path)
    _raise(_not_finite(reward, path))
    say(f"{path}: {type(reward).__name__}{_size(reward)}")


def _raise(problems: list[str]) -> None:
    if problems:
        raise InputError("\n".join(problems))


def _attempt(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except InputError as error:
        return [str(error)]
    return []


def _config(folder: Path) -> dict:
    return read_json(folder / "config.json")


def _size(part: Any) -> str:
    if not isinstance(part, torch.nn.Module) or not any(True for _ in part.parameters()):
        return ""
    count = sum(weight.numel() for weight in part.parameters())
    memory = sum(weight.numel() * weight.element_size() for weight in part.parameters())
    types = {str(weight.dtype).removeprefix("torch.") for weight in part.parameters()}
    return f", {count / 1e6:,.1f} M weights, {memory / 2**20:,.0f} MiB as {'/'.join(sorted(types))}"


def _pickles(folder: Path) -> str:
    pickled = [path.name for pattern in ("*.bin", "*.ckpt", "*.pt") for path in folder.glob(pattern)]
    if not pickled or any(folder.glob("*.safetensors")):
        return ""
    return f"; {pickled[0]} is a pickle, read without its code: prefer a repository with safetensors"
