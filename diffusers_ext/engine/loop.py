"""The training loop, for every objective of this project.

    check(options)                                      # before anything is loaded
    accelerator = start(options)
    claim(accelerator, options, sources, way)           # after all validation
    train(accelerator, objective, dataset, options)     # steps, checkpoints, exact resume, metrics, samples

A data set brings the loader of its batches (see `data.batches`), whose samples have a "key": (epoch, index). An objective
turns a batch into {"loss": ...}. All randomness depends on those keys (see `randomness`), so the state of a run is its
weights, its optimiser and its step.
"""

import ctypes
import importlib.util
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import ProjectConfiguration, send_to_device
from diffusers.utils import logging as diffusers_logging
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..data.batches import Trainable
from ..errors import InputError
from ..options import RunOptions, TrainingOptions, as_dict, check_declared, late_warmup
from ..randomness import Share, step_seed
from . import checkpoints
from .hub import check_push
from .launch import check_launch
from .lock import Sigterm, outlive_sigterm
from .objective import Objective
from .optimizers import check_optimizer
from .resume import claim as claim
from .run_folder import Metrics, check_run_folder
from .samples import Preview, SampleDrawing, on_any_rank
from .state import State

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def check(options: TrainingOptions) -> None:
    """Check what can be checked before anything is loaded; every rank calls this before `start`.

    Raises InputError if an option's declaration refuses its value, the
    tracker is not installed, the run folder belongs to something else, or the checkpoint to resume from is damaged.
    """
    check_declared(options)
    tracker = options.report_to
    if tracker not in (None, "all", "none"):
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise InputError(f"--report_to {tracker}: unknown; choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if importlib.util.find_spec(tracker) is None:
            raise InputError(
                f"--report_to {tracker}: {tracker} is not installed; pip install {tracker}, or leave --report_to out"
            )
    check_optimizer(options)
    check_launch(options)
    check_run_folder(options)
    if options.push_to_hub and not options.dry_run:
        check_push(Path(options.output_dir), options)
    if options.resume_from_checkpoint != "latest":
        checkpoints.find(options.resume_from_checkpoint, Path(options.output_dir))


def start(options: RunOptions) -> Accelerator:
    """Return the Accelerator of one training."""
    if options.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    diffusers_logging.disable_progress_bar()  # one bar is enough: the training's
    transformers_logging.disable_progress_bar()
    accelerator = Accelerator(
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        mixed_precision=options.mixed_precision,
        dynamo_backend="inductor" if options.torch_compile else None,  # else what accelerate was launched with
        log_with=None if options.report_to in (None, "none") else options.report_to,
        project_config=ProjectConfiguration(options.output_dir, str(Path(options.output_dir) / options.logging_dir)),
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones; elsewhere do nothing.

    By default it returns them to the kernel, which hands the pages out again one by one, each filled with zeros.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it accepts
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return the type that frozen weights are kept in: the forward pass's own."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def total_steps(options: RunOptions, samples: int, ranks: int) -> int:
    """Return the number of optimiser steps: max_train_steps, or num_train_epochs passes over the samples.

    >>> total_steps(RunOptions(num_train_epochs=2, train_batch_size=4), samples=10, ranks=1)
    5
    """
    if options.max_train_steps is not None:
        return options.max_train_steps
    per_step = options.train_batch_size * options.gradient_accumulation_steps * ranks
    return math.ceil(options.num_train_epochs * samples / per_step)


def train(
    accelerator: Accelerator,
    objective: Objective,
    dataset: Trainable,
    options: TrainingOptions,
    preview: Preview | None = None,
) -> None:
    """Train `objective` on `dataset`; afterwards it holds the final (or averaged) weights on every rank.

    On SIGTERM the step, or with several ranks the next logging step, is finished and saved, and SystemExit(143) raised. What is
    drawn then is left; the resumed run draws it before its first step.
    """
    output_dir = Path(options.output_dir)
    stop = total_steps(options, len(dataset), accelerator.num_processes)
    if warning := late_warmup(options, stop):
        accelerator.print(warning)
    state = State(accelerator, objective, options, stop)
    first = _resume(state, options, stop)
    metrics = Metrics(accelerator, output_dir, options, first)
    drawing = SampleDrawing(accelerator, preview, metrics, state.averaged)
    with Sigterm() as sigterm:
        if first and is_due(options, first, stop):
            drawing.catch_up(first, sigterm)
            if on_any_rank(accelerator, sigterm.came):
                leave(accelerator, metrics, first)
        if first and drawing.wants_to_stop:
            accelerator.print(f"this run was stopped early at step {first}: nothing is left to train")
            stop = first
        batches = iter(data_loader(accelerator, dataset, options, first, stop))
        bar = tqdm(total=stop, initial=first, desc="training", unit="step", disable=not accelerator.is_main_process)
        for step in range(first + 1, stop + 1):
            torch.manual_seed(step_seed(options.seed, step, accelerator.process_index))
            norm = _take_step(state, batches, metrics, options)
            metrics.close_step(step, state.learning_rate, norm)
            state.close_step()
            bar.update()
            show = preview is not None and is_due(options, step, stop)
            keep = step % options.checkpointing_steps == 0 or step == stop
            log = show or keep or step % options.logging_steps == 0
            ended = (log or accelerator.num_processes == 1) and on_any_rank(accelerator, sigterm.came)
            if log or ended:
                bar.set_postfix(metrics.flush())
            if keep or ended:  # before samples are drawn, which takes long
                checkpoints.save(accelerator, output_dir, step, options.checkpoints_total_limit)
            if ended:
                leave(accelerator, metrics, step)
            if show:
                drawing.draw(step, sigterm)
                ended, done = on_any_rank(accelerator, sigterm.came), drawing.wants_to_stop
                if (ended or done) and not keep:
                    checkpoints.save(accelerator, output_dir, step, options.checkpoints_total_limit)
                if ended:
                    leave(accelerator, metrics, step)
                if done:
                    accelerator.print(f"stopping early at step {step}: the measurements get no better")
                    break
    bar.close()
    state.finish()
    accelerator.wait_for_everyone()
    metrics.finish()


def _resume(state: State, options: TrainingOptions, stop: int) -> int:
    """Restore the checkpoint that options name, and return its step; 0 where there is none."""
    output_dir = Path(options.output_dir)
    checkpoint = checkpoints.find(options.resume_from_checkpoint, output_dir)
    if checkpoint is None:
        return 0
    state.accelerator.print(f"resuming from {checkpoint}")
    step = state.restore(checkpoint)
    if state.accelerator.is_main_process:
        checkpoints.set_aside(output_dir, step)
    if step >= stop:
        state.accelerator.print(
            f"step {step} of {stop} is done already: nothing is left to train; for more, raise the steps"
        )
    return step


def _take_step(state: State, batches: Iterator[dict], metrics: Metrics, options: TrainingOptions) -> torch.Tensor:
    """Take one step of the optimiser, on as many micro-batches as it accumulates; return the gradient's norm, a scalar."""
    accelerator, largest = state.accelerator, options.max_grad_norm or math.inf
    norm = torch.zeros(())
    for _ in range(options.gradient_accumulation_steps):
        with accelerator.accumulate(state.model):
            parts = state.model(send_to_device(next(batches), accelerator.device))
            accelerator.backward(parts["loss"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(state.parameters, largest)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=options.set_grads_to_none)
        metrics.gather(parts)
    return norm


def data_loader(
    accelerator: Accelerator, dataset: Trainable, options: TrainingOptions, first: int, stop: int
) -> DataLoader:
    """Load this rank's micro-batches of steps first+1 .. stop."""
    share = Share(
        options.train_batch_size,
        stop,
        first,
        options.gradient_accumulation_steps,
        accelerator.num_processes,
        accelerator.process_index,
    )
    return dataset.loader(
        options.seed,
        share,
        num_workers=options.dataloader_num_workers,
        worker_init_fn=outlive_sigterm,
        pin_memory=accelerator.device.type == "cuda",
    )


def is_due(options: RunOptions, step: int, stop: int) -> bool:
    """Whether samples are drawn at a step: every so many, and at the last.

    >>> is_due(RunOptions(validation_steps=100), step=200, stop=250), is_due(RunOptions(validation_steps=100), step=210, stop=250)
    (True, False)
    """
    return step % options.validation_steps == 0 or step == stop


def leave(accelerator: Accelerator, metrics: Metrics, step: int) -> None:
    """End the run that SIGTERM ended, after its step was saved."""
    accelerator.print(f"SIGTERM: step {step} is saved; resume with --resume_from_checkpoint latest")
    metrics.finish()
    raise SystemExit(128 + signal.SIGTERM)


def plan(options: TrainingOptions, samples: int, parts: dict[str, Any]) -> str:
    """Return what a run would do, as `--dry_run` prints it; of the parts only modules count.

    Memory counts a trained parameter's weight, gradient and AdamW's two moments (16 bytes, 10 in 8 bits; an average and
    initial weights 4 more each) and a frozen one's weight; activations come on top.
    """
    ranks = PartialState().num_processes
    models = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    trained = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    frozen = sum(p.nbytes for p in {p for model in models.values() for p in model.parameters()} if not p.requires_grad)
    bytes_each = (10 if options.use_8bit_adam else 16) + 4 * options.use_ema + 4 * options.decay_to_initial
    memory = bytes_each * sum(trained.values()) + frozen
    batch = options.train_batch_size * options.gradient_accumulation_steps * ranks
    steps = total_steps(options, samples, ranks)
    lines = ["options", *(f"  {name}: {value}" for name, value in as_dict(options).items()), "models"]
    lines += [f"  {name}: {count[name]:,} parameters, {trained[name]:,} trained" for name in models]
    lines += ["run", f"  samples: {samples:,}"]
    lines += [f"  steps: {steps:,} of {batch} samples on {ranks} process(es)"]
    lines += [f"  memory: {memory / 2**20:,.0f} MiB for weights, gradients and optimiser, plus activations"]
    return "\n".join([*lines, *filter(None, [late_warmup(options, steps)])])
