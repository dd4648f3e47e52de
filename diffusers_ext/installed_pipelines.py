"""Load a pipeline to draw with: one of this package by its installed class, so that no code of a repository runs.

pipe = load_pipeline("owner/published", torch.float32)
add_loras(pipe, ["runs/tuned", "style.safetensors:0.6"])
"""

import json
import math
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from .errors import InputError

PIPELINES, REWARD = "diffusers_ext.pipelines", "reward_model"


def load_pipeline(model: str | Path, dtype: torch.dtype) -> DiffusionPipeline:
    """Return the pipeline of a folder or Hub name; one of ours comes without its reward, which is given apart.

    Raises what `DiffusionPipeline.from_pretrained` raises, InputError for a component of ours that it cannot load.
    """
    kind = installed_class(DiffusionPipeline.load_config(model).get("_class_name"))
    if kind is None:
        return DiffusionPipeline.from_pretrained(model, dtype=dtype)
    folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(str(model), ignore_patterns=["*.py"]))
    with TemporaryDirectory() as view:
        rewards = _link(folder, Path(view), kind)
        pipe = kind.from_pretrained(view, dtype=dtype, **dict.fromkeys(rewards))
    pipe.register_to_config(_name_or_path=str(model))
    return pipe


def installed_class(name: object) -> type[DiffusionPipeline] | None:
    """Return the class of this package that `_class_name` of a model_index.json stands for: [file, class], or None."""
    if not isinstance(name, list) or len(name) != 2 or not all(isinstance(part, str) for part in name):
        return None
    stem, kind = name
    if not stem.isidentifier() or not (Path(import_module(PIPELINES).__path__[0]) / f"{stem}.py").is_file():
        return None
    return getattr(import_module(f"{PIPELINES}.{stem}"), kind, None)


def _link(folder: Path, view: Path, kind: type[DiffusionPipeline]) -> list[str]:
    """Show a saved pipeline as diffusers saves its own: no code files, plain class name, no reward; return the rewards."""
    index = json.loads((folder / DiffusionPipeline.config_name).read_text(encoding="utf-8"))
    ours = [
        name
        for name, home in index.items()
        if isinstance(home, list) and not name.startswith("_") and str(home[0]).startswith("diffusers_ext.")
    ]
    if strange := [name for name in ours if name != REWARD]:
        raise InputError(f"{folder}: {', '.join(strange)} cannot be loaded without the repository's code")
    for path in folder.iterdir():
        if path.is_dir() and path.name not in ours:
            os.symlink(path.resolve(), view / path.name, target_is_directory=True)
    index = {name: home for name, home in index.items() if name != REWARD} | {"_class_name": kind.__name__}
    if REWARD in kind._get_signature_types():
        index[REWARD] = [None, None]
    (view / DiffusionPipeline.config_name).write_text(json.dumps(index), encoding="utf-8")
    return [REWARD] if REWARD in index else []


def plain_call(pipe: DiffusionPipeline) -> Callable:
    """Return the call of diffusers' own class that a pipeline of ours is made of."""
    kind = next(
        kind for kind in type(pipe).__mro__ if kind.__module__.startswith("diffusers.") and "__call__" in vars(kind)
    )
    return MethodType(vars(kind)["__call__"], pipe)


# ------------------------------------------------------------------ LoRA


class Lora(NamedTuple):
    source: str
    weight: float


def read_lora(text: str) -> Lora:
    """Split PATH[:WEIGHT], where PATH may hold colons itself; InputError for what is neither a path nor owner/name."""
    source, colon, number = text.rpartition(":")
    weight = _number(number) if colon and not Path(text).exists() else None
    lora = Lora(text, 1.0) if weight is None else Lora(source, weight)
    if not math.isfinite(lora.weight):
        raise InputError(f"--lora {text}: the weight must be a finite number")
    on_hub = lora.source.count("/") == 1 and not lora.source.startswith((".", "/", "~"))
    if not lora.source or not (Path(lora.source).exists() or on_hub):
        raise InputError(f"--lora {text}: no such folder or file; give PATH or PATH:WEIGHT, such as runs/tuned:0.8")
    return lora


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def add_loras(pipe: DiffusionPipeline, loras: list[Lora]) -> None:
    """Put LoRAs on a pipeline, each with its weight; InputError naming the one that does not fit."""
    if loras and not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"--lora: a {type(pipe).__name__} takes no LoRA")
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras):
        path = Path(lora.source)
        place = {"weight_name": path.name} if path.is_file() else {}
        try:
            pipe.load_lora_weights(path.parent if place else lora.source, adapter_name=name, **place)
        except Exception as error:  # diffusers and peft raise what they like at weights of another network
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"--lora {lora.source}: cannot be put on this pipeline: {reason}") from None
        if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
            raise InputError(f"--lora {lora.source}: holds nothing for the networks of this pipeline")
    if loras:
        pipe.set_adapters(names, [lora.weight for lora in loras])
