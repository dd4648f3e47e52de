"""How a training is launched: what accelerate reads from its environment behind a script's back, and what runs here.

`accelerate launch`, and the file that `accelerate config` writes, hand their settings over in variables ACCELERATE_*. One
that changes what a run does is either what the script's own options say too, or refused.
"""

import os
from collections.abc import Mapping
from typing import Protocol

from accelerate.utils import str_to_bool

from ..errors import InputError

PRECISIONS = ("no", "fp16", "bf16")
UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
SUPPORTED = (
    "supported are one process, and several that each hold the whole model: accelerate launch --num_processes N "
    "[--multi_gpu], or distributed_type NO, MULTI_GPU and their like in the file of accelerate config"
)


class Launched(Protocol):
    """The options that a launch can contradict."""

    gradient_accumulation_steps: int
    mixed_precision: str | None


def check_parallelism(environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError if the launch shares out a model in a way that no training here can follow."""
    for name, what in UNSUPPORTED.items():
        if _is_true(environment.get(name)):
            raise InputError(
                f"{name}={environment[name]}: {what} is not supported: weights that are shared out would be neither "
                f"trained nor saved as they should. {SUPPORTED}; or unset {name}"
            )


def check_launch(options: Launched, environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError if the launch asks for something else than the options, or for what does not work here."""
    check_parallelism(environment)
    _check_accumulation(options.gradient_accumulation_steps, environment)
    precision = environment.get("ACCELERATE_MIXED_PRECISION")
    if (options.mixed_precision or precision) == "fp16" and not _has_accelerator():
        raise InputError("--mixed_precision fp16 needs a GPU, and this machine has none; give bf16, or no")
    if options.mixed_precision is None and precision and precision.lower() not in PRECISIONS:
        raise InputError(
            f"ACCELERATE_MIXED_PRECISION={precision}: not supported; give --mixed_precision {', '.join(PRECISIONS)}"
        )


def _check_accumulation(wanted: int, environment: Mapping[str, str]) -> None:
    """accelerate would step the optimiser after the variable's number of passes, the loop after its own."""
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    steps = environment.get(name)
    if steps is not None and steps.strip() != str(wanted):
        raise InputError(
            f"{name}={steps} of the launch, but --gradient_accumulation_steps {wanted}: give the number as "
            f"--gradient_accumulation_steps {steps}, or unset {name}"
        )


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _is_true(value: str | None) -> bool:
    try:
        return value is not None and str_to_bool(value) == 1
    except ValueError:
        return False
