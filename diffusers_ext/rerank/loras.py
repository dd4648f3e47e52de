"""LoRAs by name and weight, put on a pipeline.

add_loras(pipe, [read_lora("runs/tuned"), read_lora("style.safetensors:0.6")])
"""

import math
from pathlib import Path
from typing import NamedTuple

from diffusers import DiffusionPipeline

from ..errors import InputError


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
