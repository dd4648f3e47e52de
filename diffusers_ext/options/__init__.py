"""Options are dataclasses: one field, one flag, one help text. The options that all trainings share are here.

`options.declarations` says how an option is declared, `options.parsing` reads command lines and files, `options.checks`
refuses values. Nothing here imports torch, so that `--help` answers at once.

Why a parser of our own: tyro, jsonargparse and simple-parsing were measured against it. Their `--help` takes one and a half
to two times as long, and none of them does all of this as it comes: underscores as diffusers has them and dashes too, `--no-x` for
every switch, `--config`, and each flag once in `--help`. We found no counterpart to `requires`: an option states
which other options must be set for it to be read, so that nothing a user types is ignored in silence.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .checks import check_alone, check_declared, check_used, check_writable
from .declarations import (
    ANY,
    COUNT,
    DECAY,
    NATURAL,
    PORT,
    POSITIVE,
    SEED,
    SHARE,
    WEIGHT,
    Range,
    declared,
    depends,
    group,
    option,
)
from .parsing import T, parse

__all__ = [
    "ANY",
    "COUNT",
    "DECAY",
    "NATURAL",
    "PORT",
    "POSITIVE",
    "SEED",
    "SHARE",
    "WEIGHT",
    "DiffusionOptions",
    "OptimizerOptions",
    "Range",
    "RunOptions",
    "TrainingOptions",
    "as_dict",
    "check_alone",
    "check_declared",
    "check_used",
    "check_writable",
    "command_line",
    "declared",
    "depends",
    "group",
    "late_warmup",
    "option",
    "parse",
    "run",
]

OTHERS_WAIT = 10  # seconds that all processes of a machine but the first give it to say what is wrong
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
WARMED = tuple(name for name in SCHEDULES if name != "constant")


@group("run")
@dataclass
class RunOptions:
    """What every training has in common; `loop.train` reads them."""

    output_dir: str = option(
        "runs/latest", "the run folder: options, metrics, samples, checkpoints, model and card", path="folder"
    )
    seed: int = option(
        0,
        "same seed, same result, whatever the workers, ranks, caches and interruptions",
        SEED,
        instead="for a random one draw it yourself, so that the run can be repeated",
    )
    max_train_steps: int | None = option(
        None,
        "optimiser steps; without it, num_train_epochs decides",
        COUNT,
        instead="leave it out to train for --num_train_epochs; --dry_run trains nothing",
    )
    num_train_epochs: int = option(
        1,
        "passes over the data, where max_train_steps is not given",
        COUNT,
        requires={"max_train_steps": False},
        instead="give --max_train_steps for a part of a pass",
    )
    train_batch_size: int = option(4, "samples per process and forward pass", COUNT)
    gradient_accumulation_steps: int = option(1, "forward passes per optimiser step", COUNT)
    dataloader_num_workers: int = option(0, "processes that load data; 0 loads in the training process", NATURAL)
    mixed_precision: str | None = option(
        None, "precision of the forward pass; else what accelerate was launched with", ("no", "fp16", "bf16")
    )
    torch_compile: bool = option(
        False,
        "compile the forward and backward pass; the first steps take minutes; accelerate's --dynamo_backend does too",
    )
    allow_tf32: bool = option(False, "let CUDA matrix products round to TF32: faster on Ampere and later")
    logging_steps: int = option(10, "write metrics every so many steps; every step's own row is kept", COUNT)
    validation_steps: int = option(
        100,
        "draw samples and measure every so many steps, and at the end",
        COUNT,
        instead="give more than the run's steps for only the end",
    )
    checkpointing_steps: int = option(
        500,
        "write a checkpoint every so many steps, and at the end",
        COUNT,
        instead="give more than the run's steps for only the end",
    )
    checkpoints_total_limit: int | None = option(
        None, "keep only so many checkpoints, the newest", COUNT, instead="leave it out to keep all"
    )
    resume_from_checkpoint: str | None = option(
        None, "a checkpoint folder, or 'latest' in output_dir; nothing to resume starts afresh", path="read"
    )
    report_to: str | None = option(
        None, "also log to a tracker: tensorboard, wandb, comet_ml, ...; metrics.jsonl is always written"
    )
    logging_dir: str = option("logs", "folder of the tracker's files, inside output_dir", requires={"report_to": True})
    tracker_project_name: str = option("diffusers_ext", "project name for the tracker", requires={"report_to": True})
    push_to_hub: bool = option(False, "upload model and card when done")
    hub_model_id: str | None = option(
        None, "owner/name of the repository to push to; default: the name of output_dir", requires={"push_to_hub": True}
    )
    hub_token: str | None = option(
        None, "token for the push; default: the one you logged in with", requires={"push_to_hub": True}
    )
    dry_run: bool = option(False, "print the resolved options, data, parameters, steps and memory, then stop")


@group("optimiser")
@dataclass
class OptimizerOptions:
    """AdamW and its schedule; `optimizers` and `loop.lr_schedule` read them."""

    learning_rate: float = option(5e-6, "after warm-up, before decay", POSITIVE)
    scale_lr: bool = option(False, "multiply learning_rate by processes x accumulation x batch size")
    lr_scheduler: str = option("constant", "shape of the schedule", SCHEDULES)
    lr_warmup_steps: int = option(
        500,
        "steps of linear warm-up, for schedules that have one",
        NATURAL,
        requires={"lr_scheduler": WARMED},
        below="max_train_steps",
    )
    lr_num_cycles: int = option(
        1, "hard restarts of cosine_with_restarts", COUNT, requires={"lr_scheduler": ("cosine_with_restarts",)}
    )
    lr_power: float = option(
        1.0, "exponent of the polynomial schedule", POSITIVE, requires={"lr_scheduler": ("polynomial",)}
    )
    adam_beta1: float = option(0.9, "decay of AdamW's first moment", DECAY)
    adam_beta2: float = option(0.999, "decay of AdamW's second moment", DECAY)
    adam_weight_decay: float = option(1e-2, "decoupled weight decay; norms and biases are never decayed", WEIGHT)
    adam_epsilon: float = option(1e-8, "AdamW's epsilon", POSITIVE)
    use_8bit_adam: bool = option(False, "keep AdamW's moments in 8 bits: a quarter of their memory; needs bitsandbytes")
    decay_to_initial: bool = option(
        False,
        "decay towards the weights a run starts from, instead of towards zero; 4 bytes more a weight",
        requires={"adam_weight_decay": True},
    )
    set_grads_to_none: bool = option(True, "free gradients after each step; --no-set_grads_to_none keeps zeros instead")
    max_grad_norm: float = option(
        1.0, "clip the gradient to this norm; 0: no clipping", WEIGHT, instead="0 is without clipping"
    )
    use_ema: bool = option(False, "keep an exponential moving average of the weights and save that")
    ema_decay: float = option(0.9999, "its decay; it warms up from 0", DECAY, requires={"use_ema": True})


@dataclass
class TrainingOptions(OptimizerOptions, RunOptions):
    """What every training with an optimiser asks for."""


@group("objective")
@dataclass
class DiffusionOptions:
    """What the denoising loss is made of; `diffusion.noising.Diffusion` reads them."""

    snr_gamma: float | None = option(
        None,
        "min-SNR weighting with this gamma, 5 in the paper; default: no weighting",
        POSITIVE,
        instead="leave it out for no weighting",
    )
    noise_offset: float = option(
        0.0, "share of noise that is constant over a picture; 0.05 helps dark and bright pictures", WEIGHT
    )
    timestep_sampling: str = option(
        "uniform", "where timesteps are drawn; cubic favours high noise", ("uniform", "cubic", "logit_normal")
    )
    timestep_min: int = option(0, "lowest timestep drawn", NATURAL, below="timestep_max")
    timestep_max: int | None = option(
        None,
        "exclusive upper bound of the timesteps drawn; default: the schedule's end",
        COUNT,
        instead="leave it out for the schedule's end",
    )
    loss_type: str = option("l2", "squared error, or Huber's, which large errors dominate less", ("l2", "huber"))
    huber_delta: float = option(
        0.1, "error beyond which Huber's loss is linear", POSITIVE, requires={"loss_type": ("huber",)}
    )


def late_warmup(options: OptimizerOptions, steps: int) -> str | None:
    """Warn of a warm-up that a run of so many steps does not finish; None where it does, or the schedule has none."""
    warmup = options.lr_warmup_steps
    if options.lr_scheduler not in WARMED or warmup < steps:
        return None
    reached = options.learning_rate * max(0, steps - 1) / warmup
    return (
        f"warning: --lr_warmup_steps {warmup} is not below the run's {steps} steps: the learning rate gets to {reached:.3g} "
        f"instead of {options.learning_rate:.3g}; give fewer warm-up steps"
    )


def as_dict(options: Any) -> dict:
    """The options as JSON-ready values; secrets are left out."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name != "hub_token"}


def command_line() -> str:
    """The command that started this process, for cards and logs; secrets are masked."""
    import shlex

    words, masked = [Path(sys.argv[0]).name, *sys.argv[1:]], []
    for position, word in enumerate(words):
        if position and words[position - 1] in ("--hub_token", "--hub-token"):
            word = "***"
        masked.append(word.split("=")[0] + "=***" if word.startswith(("--hub_token=", "--hub-token=")) else word)
    masked[0] = f"training/{masked[0]}" if masked[0].startswith("train_") else masked[0]
    return shlex.join(["accelerate", "launch", *masked])


def run(
    main: Callable[[T], None],
    cls: type[T],
    argv: list[str] | None = None,
    description: str | None = None,
    program: str | None = None,
) -> None:
    """Parse the command line, call `main`, and turn an InputError into one line on stderr and exit code 2.

    A loss that is not finite (FloatingPointError) ends a training with one line too, and exit code 1.

    description: what --help says; a script's own docstring where it is not given. program: its name there.
    """
    import __main__

    try:
        main(parse(cls, argv, description or __main__.__doc__, program))
    except InputError as error:
        _tell(error)
        raise SystemExit(2) from None
    except FloatingPointError as error:
        _tell(error)
        raise SystemExit(1) from None


def _tell(error: Exception) -> None:
    """Print an error once a machine: a launcher ends the other processes as soon as the first one has ended.

    What one of those meets alone is printed too, after a moment.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(OTHERS_WAIT)
    print(f"error: {error}", file=sys.stderr)
