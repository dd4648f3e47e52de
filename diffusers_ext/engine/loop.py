"""The training loop, for every objective of this project.

    check(options)                                      # before anything is loaded
    accelerator = start(options)
    claim(accelerator, options, sources, way)           # after all validation
    train(accelerator, objective, dataset, options)     # steps, checkpoints, exact resume, metrics, samples

A data set answers `len(dataset)` and `dataset[(epoch, index)]`, a dictionary with "key": (epoch, index); its `buckets`
name each sample's size where they differ, else None. An objective
turns a collated batch into {"loss": ...}. All randomness hangs on those keys (see `randomness`), so the state of a run
is its weights, its optimiser and its step.
"""

import ctypes
import importlib.util
import math
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import ProjectConfiguration, send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging as diffusers_logging
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..data.buckets import BucketBatches
from ..data.stream import Stream
from ..errors import InputError
from ..options import RunOptions, as_dict, check_declared, late_warmup
from ..randomness import MicroBatches, step_seed
from . import checkpoints
from .hub import check_push
from .launch import check_launch
from .lock import Interrupted, Sigterm, outlive_sigterm
from .objective import Objective
from .optimizers import adamw, check_optimizer
from .resume import claim as claim
from .run_folder import Metrics, check_run_folder, read_metrics

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
Preview = Callable[[int], dict[str, Any]]  # draws the current weights' samples at a step; see Metrics.note


def check(options: Any) -> None:
    """Check what can be checked before anything is loaded; every rank calls this before `start`.

    options has the fields of `options.RunOptions`. Raises InputError if an option's declaration refuses its value, the
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


def start(options: Any) -> Accelerator:
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


def total_steps(options: Any, samples: int, ranks: int) -> int:
    """Return the number of optimiser steps: max_train_steps, or num_train_epochs passes over the samples."""
    if options.max_train_steps is not None:
        return options.max_train_steps
    per_step = options.train_batch_size * options.gradient_accumulation_steps * ranks
    return math.ceil(options.num_train_epochs * samples / per_step)


def train(
    accelerator: Accelerator, objective: Objective, dataset: Dataset, options: Any, preview: Preview | None = None
) -> None:
    """Train `objective` on `dataset`; afterwards it holds the final (or averaged) weights on every rank.

    On SIGTERM the step, or with several ranks the next logging step, is finished and saved, and SystemExit(143) raised. What is
    drawn then is left; the resumed run draws it before its first step.
    """
    output_dir = Path(options.output_dir)
    stop = total_steps(options, len(dataset), accelerator.num_processes)
    resumed = checkpoints.find(options.resume_from_checkpoint, output_dir)
    if warning := late_warmup(options, stop):
        accelerator.print(warning)

    # The state of a run: weights, optimiser, schedule, average, and the step.
    objective.to(accelerator.device)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = adamw(parameters, options, accelerator.num_processes)
    schedule = lr_schedule(optimizer, options, stop)
    average = EMAModel(parameters, decay=options.ema_decay, foreach=True) if options.use_ema else None
    model, optimizer = accelerator.prepare(objective, optimizer)
    checkpoints.attach(accelerator, objective)
    if average:
        accelerator.register_for_checkpointing(average)
    first = checkpoints.step_of(resumed) if resumed else 0
    if resumed:
        accelerator.print(f"resuming from {resumed}")
        restore(accelerator, resumed, first, optimizer, schedule, average)
        if accelerator.is_main_process:
            checkpoints.set_aside(output_dir, first)
    if first >= stop:
        accelerator.print(
            f"step {first} of {stop} is done already: nothing is left to train; for more, raise the steps"
        )

    metrics = Metrics(accelerator, output_dir, options, first)
    shown = Shown(accelerator, preview, metrics, lambda: averaged(average, parameters))
    with Sigterm() as sigterm:
        if resumed and is_due(options, first, stop) and shown.is_missing(output_dir, first):
            shown.draw(first, sigterm)
            if anywhere(accelerator, sigterm.came):
                leave(accelerator, metrics, first)
        if resumed and wants_to_stop(accelerator, preview):
            accelerator.print(f"this run was stopped early at step {first}: nothing is left to train")
            stop = first
        batches = iter(data_loader(accelerator, dataset, options, first, stop))
        bar = tqdm(total=stop, initial=first, desc="training", unit="step", disable=not accelerator.is_main_process)
        for step in range(first + 1, stop + 1):
            torch.manual_seed(step_seed(options.seed, step, accelerator.process_index))
            for _ in range(options.gradient_accumulation_steps):
                with accelerator.accumulate(model):
                    parts = model(send_to_device(next(batches), accelerator.device))
                    accelerator.backward(parts["loss"])
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(parameters, options.max_grad_norm or math.inf)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=options.set_grads_to_none)
                metrics.gather(parts)
            metrics.close_step(step, optimizer.param_groups[0]["lr"], norm)
            schedule.step()
            if average:
                average.step(parameters)
            bar.update()

            show = preview is not None and is_due(options, step, stop)
            keep = step % options.checkpointing_steps == 0 or step == stop
            log = show or keep or step % options.logging_steps == 0
            ended = (log or accelerator.num_processes == 1) and anywhere(accelerator, sigterm.came)
            if log or ended:
                bar.set_postfix(metrics.flush())
            if keep or ended:  # before samples are drawn, which takes long
                checkpoints.save(accelerator, output_dir, step, options.checkpoints_total_limit)
            if ended:
                leave(accelerator, metrics, step)
            if show:
                shown.draw(step, sigterm)
                ended, done = anywhere(accelerator, sigterm.came), wants_to_stop(accelerator, preview)
                if (ended or done) and not keep:
                    checkpoints.save(accelerator, output_dir, step, options.checkpoints_total_limit)
                if ended:
                    leave(accelerator, metrics, step)
                if done:
                    accelerator.print(f"stopping early at step {step}: the measurements get no better")
                    break
    bar.close()
    if average:
        average.copy_to(parameters)
    accelerator.wait_for_everyone()
    metrics.finish()


def restore(
    accelerator: Accelerator, checkpoint: Path, step: int, optimizer, schedule, average: EMAModel | None
) -> None:
    """Read a checkpoint; rates and decays stay those of the options given now, the schedule stands at `step`."""
    given = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # of the file formats of torch, safetensors and accelerate, of which each has its own
        raise InputError(
            f"{checkpoint}: does not fit the options of this run ({error}); give those of its own"
        ) from error
    accelerator.step = 0  # its count of forward passes: a checkpoint is written between steps
    if average:
        average.to(accelerator.device)
    schedule.last_epoch = step
    for group, values, base, shape in zip(optimizer.param_groups, given, schedule.base_lrs, schedule.lr_lambdas):
        group.update({**values, "lr": base * shape(step)})


def lr_schedule(optimizer: torch.optim.Optimizer, options: Any, stop: int) -> torch.optim.lr_scheduler.LRScheduler:
    """diffusers' schedule of that name; one step of it is one optimiser step, on any number of ranks."""
    return get_scheduler(
        options.lr_scheduler,
        optimizer,
        num_warmup_steps=options.lr_warmup_steps,
        num_training_steps=stop,
        num_cycles=options.lr_num_cycles,
        power=options.lr_power,
    )


def data_loader(accelerator: Accelerator, dataset: Dataset, options: Any, first: int, stop: int) -> DataLoader:
    """Load this rank's micro-batches of steps first+1 .. stop."""
    split = (options.train_batch_size, options.gradient_accumulation_steps)
    rank = (accelerator.num_processes, accelerator.process_index)
    how = {
        "collate_fn": collate,
        "num_workers": options.dataloader_num_workers,
        "worker_init_fn": outlive_sigterm,
        "pin_memory": accelerator.device.type == "cuda",
    }
    if isinstance(dataset, Stream):
        return DataLoader(dataset.batches(*split, *rank, first, stop), batch_size=None, **how)
    span = (options.seed, *split, *rank, first, stop)
    batches = BucketBatches(dataset.buckets, *span) if dataset.buckets else MicroBatches(len(dataset), *span)
    return DataLoader(dataset, batch_sampler=batches, **how)


def collate(samples: list[dict]) -> dict:
    """Stack tensors, list everything else."""
    batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values for name, values in batch.items()
    }


@contextmanager
def averaged(average: EMAModel | None, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters are their moving average, where there is one."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)


def is_due(options: RunOptions, step: int, stop: int) -> bool:
    """Whether samples are drawn at a step: every so many, and at the last."""
    return step % options.validation_steps == 0 or step == stop


def leave(accelerator: Accelerator, metrics: Metrics, step: int) -> None:
    """End the run that SIGTERM ended, after its step was saved."""
    accelerator.print(f"SIGTERM: step {step} is saved; resume with --resume_from_checkpoint latest")
    metrics.finish()
    raise SystemExit(128 + signal.SIGTERM)


@dataclass(frozen=True)
class Shown:
    """The samples of a run: drawn on the main process by the preview, if there is one, within the averaged weights."""

    accelerator: Accelerator
    preview: Preview | None
    metrics: Metrics
    weights: Callable[[], AbstractContextManager[None]]

    def is_missing(self, output_dir: Path, step: int) -> bool:
        """Whether drawing was interrupted at a step; every rank gets the main process's answer."""
        if self.preview is None:
            return False
        rows = (
            [row for row in read_metrics(output_dir) if row["step"] == step] if self.accelerator.is_main_process else []
        )
        return anywhere(self.accelerator, bool(rows) and all("loss" in row for row in rows))

    def draw(self, step: int, sigterm: Sigterm) -> None:
        """Draw and measure; a failure is printed and never ends the run, SIGTERM ends drawing and leaves no trace of it."""
        if not self.accelerator.is_main_process or self.preview is None:
            return
        seen: dict[str, Any] = {}
        try:
            with self.weights(), torch.inference_mode(), self.accelerator.autocast(), sigterm.interrupts():
                seen = self.preview(step)
        except Interrupted:
            print(f"SIGTERM: drawing the samples of step {step} is interrupted; a resumed run draws them")
            return
        except Exception:
            print(f"the samples of step {step} could not be drawn; training continues\n{traceback.format_exc()}")
        self.metrics.note(step, seen)


def wants_to_stop(accelerator: Accelerator, preview: Preview | None) -> bool:
    """Whether the preview, which draws on the main process alone, says on its attribute `stop` that no more is to be learned."""
    return anywhere(accelerator, accelerator.is_main_process and getattr(preview, "stop", False))


def anywhere(accelerator: Accelerator, mine: bool) -> bool:
    """Whether it is so on any rank; every rank calls this."""
    if accelerator.num_processes == 1:
        return bool(mine)
    return bool(accelerator.reduce(torch.tensor(float(mine), device=accelerator.device), "sum") > 0)


def plan(options: Any, samples: int, parts: dict[str, Any]) -> str:
    """Say what a run would do: what `--dry_run` prints; of the parts only modules count.

    Memory counts a trained parameter's weight, gradient and AdamW's two moments (16 bytes, 10 in 8 bits; an average and
    initial weights 4 more each) and a frozen one's weight; activations come on top.
    """
    ranks = PartialState().num_processes
    models = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    trained = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    frozen = sum(p.nbytes for p in {p for model in models.values() for p in model.parameters()} if not p.requires_grad)
    each = (10 if options.use_8bit_adam else 16) + 4 * options.use_ema + 4 * options.decay_to_initial
    memory = each * sum(trained.values()) + frozen
    batch = options.train_batch_size * options.gradient_accumulation_steps * ranks
    steps = total_steps(options, samples, ranks)
    lines = ["options", *(f"  {name}: {value}" for name, value in as_dict(options).items()), "models"]
    lines += [f"  {name}: {count[name]:,} parameters, {trained[name]:,} trained" for name in models]
    lines += ["run", f"  samples: {samples:,}"]
    lines += [f"  steps: {steps:,} of {batch} samples on {ranks} process(es)"]
    lines += [f"  memory: {memory / 2**20:,.0f} MiB for weights, gradients and optimiser, plus activations"]
    return "\n".join([*lines, *filter(None, [late_warmup(options, steps)])])
