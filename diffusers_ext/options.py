"""Options are dataclasses: one field, one flag, one help text.

`parse(Options)` turns a dataclass into a command line. `--a_b` and `--a-b` both work, a boolean `x` has `--x` and
`--no-x`, and `--config run.json` sets any of them (the command line wins; unknown keys are refused). Nothing here
imports torch, so that `--help` answers at once.
"""

import argparse
import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


def option(default: Any, help: str, choices: tuple | None = None, positional: bool = False) -> Any:
    """Declare one option: its default, the sentence `--help` prints, and the values allowed.

    positional: given by its place, without the flag.
    """
    metadata = {"help": help, "choices": choices, "positional": positional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(title: str):
    """Name the section of `--help` in which the fields declared by this class stand."""

    def mark(cls):
        cls._groups = {**getattr(cls, "_groups", {}), **dict.fromkeys(inspect.get_annotations(cls), title)}
        return cls

    return mark


@group("run")
@dataclass
class RunOptions:
    """What every training has in common; `loop.train` reads them."""

    output_dir: str = option("runs/latest", "the run folder: options, metrics, samples, checkpoints, model and card")
    seed: int = option(0, "same seed, same result, whatever the workers, ranks, caches and interruptions")
    max_train_steps: int | None = option(None, "optimiser steps; without it, num_train_epochs decides")
    num_train_epochs: int = option(1, "passes over the data, where max_train_steps is not given")
    train_batch_size: int = option(4, "samples per process and forward pass")
    gradient_accumulation_steps: int = option(1, "forward passes per optimiser step")
    dataloader_num_workers: int = option(0, "processes that load data; 0 loads in the training process")
    mixed_precision: str | None = option(
        None, "precision of the forward pass; else what accelerate was launched with", ("no", "fp16", "bf16")
    )
    torch_compile: bool = option(
        False,
        "compile the forward and backward pass; the first steps take minutes; accelerate's --dynamo_backend does too",
    )
    allow_tf32: bool = option(False, "let CUDA matrix products round to TF32: faster on Ampere and later")
    logging_steps: int = option(10, "write metrics every so many steps; every step's own row is kept")
    validation_steps: int = option(100, "draw samples and measure every so many steps")
    checkpointing_steps: int = option(500, "write a checkpoint every so many steps")
    checkpoints_total_limit: int | None = option(None, "keep only so many checkpoints, the newest")
    resume_from_checkpoint: str | None = option(
        None, "a checkpoint folder, or 'latest' in output_dir; nothing to resume starts afresh"
    )
    report_to: str | None = option(
        None, "also log to a tracker: tensorboard, wandb, comet_ml, ...; metrics.jsonl is always written"
    )
    logging_dir: str = option("logs", "folder of the tracker's files, inside output_dir")
    tracker_project_name: str = option("diffusers_ext", "project name for the tracker")
    push_to_hub: bool = option(False, "upload model and card when done")
    hub_model_id: str | None = option(None, "owner/name of the repository to push to; default: the name of output_dir")
    hub_token: str | None = option(None, "token for the push; default: the one you logged in with")
    dry_run: bool = option(False, "print the resolved options, data, parameters, steps and memory, then stop")


@group("optimiser")
@dataclass
class OptimizerOptions:
    """AdamW and its schedule; `optimizers` and `loop.lr_schedule` read them."""

    learning_rate: float = option(5e-6, "after warm-up, before decay")
    scale_lr: bool = option(False, "multiply learning_rate by processes x accumulation x batch size")
    lr_scheduler: str = option("constant", "shape of the schedule", SCHEDULES)
    lr_warmup_steps: int = option(500, "steps of linear warm-up, for schedules that have one")
    lr_num_cycles: int = option(1, "hard restarts of cosine_with_restarts")
    lr_power: float = option(1.0, "exponent of the polynomial schedule")
    adam_beta1: float = option(0.9, "decay of AdamW's first moment")
    adam_beta2: float = option(0.999, "decay of AdamW's second moment")
    adam_weight_decay: float = option(1e-2, "decoupled weight decay; norms and biases are never decayed")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    use_8bit_adam: bool = option(False, "keep AdamW's moments in 8 bits: a quarter of their memory; needs bitsandbytes")
    decay_to_initial: bool = option(
        False, "decay towards the weights a run starts from, instead of towards zero; 4 bytes more a weight"
    )
    set_grads_to_none: bool = option(True, "free gradients after each step; --no-set_grads_to_none keeps zeros instead")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm")
    use_ema: bool = option(False, "keep an exponential moving average of the weights and save that")
    ema_decay: float = option(0.9999, "its decay; it warms up from 0")


@group("objective")
@dataclass
class DiffusionOptions:
    """What the denoising loss is made of; `objectives.diffusion.Diffusion` reads them."""

    snr_gamma: float | None = option(None, "min-SNR weighting with this gamma, 5 in the paper; default: no weighting")
    noise_offset: float = option(
        0.0, "share of noise that is constant over a picture; 0.05 helps dark and bright pictures"
    )
    timestep_sampling: str = option(
        "uniform", "where timesteps are drawn; cubic favours high noise", ("uniform", "cubic", "logit_normal")
    )
    timestep_min: int = option(0, "lowest timestep drawn")
    timestep_max: int | None = option(None, "lowest timestep that is not drawn any more; default: the schedule's end")
    loss_type: str = option("l2", "squared error, or Huber's, which large errors dominate less", ("l2", "huber"))
    huber_delta: float = option(0.1, "error beyond which Huber's loss is linear")


def parse(cls: type[T], argv: list[str] | None = None, description: str | None = None, program: str | None = None) -> T:
    """Read an options dataclass from the command line; a mistake ends the program with one line that says why."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # T is one
    places = [f" [{field.name.upper()}]" for field in fields if field.metadata.get("positional")]
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"%(prog)s{''.join(places)} [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="JSON file of options; the command line wins over it")
    sections: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in fields:
        title = getattr(cls, "_groups", {}).get(field.name, "options")
        if title not in sections:
            sections[title] = parser.add_argument_group(title)
        _add_argument(sections[title], field, hints[field.name])
    given = vars(parser.parse_args(argv))
    config = given.pop("config", None)
    try:
        values = {**(_read_config(config, cls) if config else {}), **given}
        return cls(**values)
    except ValueError as error:
        parser.error(str(error))


def check_used(options: Any, used_by: Mapping[str, Mapping[str, tuple | bool]], **found: str) -> None:
    """Raise InputError for an option that was given though nothing would read it; one that is its default counts as not given.

    used_by: of such an option, the other options that it depends on, each with the values under which it is read, or
    True for any but None, False and 0. found: values to compare instead of an option's own, such as the kind of a file.
    """
    defaults = {field.name: _default(field) for field in dataclasses.fields(options)}
    for name, needed in used_by.items():
        if getattr(options, name) == defaults[name]:
            continue
        for other, wanted in needed.items():
            value = found.get(other, getattr(options, other))
            if isinstance(wanted, tuple) and value not in wanted:
                raise InputError(
                    f"--{name} is for --{other} {' or '.join(wanted)}; {value} would ignore it: leave it out"
                )
            if wanted is True and not value:
                raise InputError(f"--{name} is for --{other}, without which nothing reads it: give both, or neither")


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


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _add_argument(parser: Any, field: dataclasses.Field, hint: Any) -> None:
    kind, _, many = _unpack(hint)
    default = _default(field)
    shown = "" if default is None or default == [] else f" (default: {default})"
    names = [f"--{field.name}"] + ([f"--{field.name.replace('_', '-')}"] if "_" in field.name else [])
    # argparse.SUPPRESS: only what the user typed is returned, so that a config file can sit between it and the defaults.
    settings: dict[str, Any] = {
        "dest": field.name,
        "default": argparse.SUPPRESS,
        "help": (field.metadata["help"] + shown).replace("%", "%%"),
    }
    if field.metadata["positional"]:
        del settings["dest"]  # argparse takes the name of a positional for it
        parser.add_argument(field.name, nargs="*" if many else "?", metavar=field.name.upper(), type=kind, **settings)
        return
    if kind is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, **settings)
        return
    if field.metadata["choices"]:
        settings["choices"] = field.metadata["choices"]
        settings["metavar"] = "{" + ",".join(map(str, field.metadata["choices"])) + "}"
    else:
        settings["metavar"] = kind.__name__.upper()
    parser.add_argument(*names, type=kind, nargs="+" if many else None, **settings)


def _unpack(hint: Any) -> tuple[type, bool, bool]:
    """Split a type hint into (type, may be None, is a list)."""
    optional = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = True
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], optional, True
    return hint, optional, False


def _read_config(path: str, cls: type) -> dict:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected a JSON object of options")
    # options.json of a run folder wraps them with the command; it can be given back as it is.
    values = values.get("options", values)
    hints, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"--config {path}: unknown option {', '.join(unknown)}; see --help")
    for name, value in values.items():
        values[name] = _check(path, name, value, *_unpack(hints[name]), fields[name].metadata["choices"])
    return values


def _check(path: str, name: str, value: Any, kind: type, optional: bool, many: bool, choices: tuple | None) -> Any:
    if value is None and optional:
        return None
    if many:
        if not isinstance(value, list):
            raise ValueError(f"--config {path}: {name} must be a list")
        return [_check(path, name, item, kind, False, False, choices) for item in value]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"--config {path}: {name} must be {kind.__name__}, got {value!r}")
    if choices and value not in choices:
        raise ValueError(f"--config {path}: {name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return value


def run(
    main: Callable[[T], None],
    cls: type[T],
    argv: list[str] | None = None,
    description: str | None = None,
    program: str | None = None,
) -> None:
    """Parse the command line, call `main`, and turn an InputError into one line on stderr and exit code 2.

    description: what --help says; a script's own docstring where it is not given. program: its name there.
    """
    import __main__

    options = parse(cls, argv, description or __main__.__doc__, program)
    try:
        main(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
