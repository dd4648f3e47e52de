"""The last check before a run: may it resume what is there, may it push where it is told to, is the folder free?

Nothing is written before all of it has been answered, so that a refused command leaves a run folder as it was.
"""

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import InputError
from ..options import OptimizerOptions, as_dict
from . import checkpoints, hub
from .provenance import Sources, compare, record_of
from .run_folder import FolderOptions, write_options

AVERAGE = "custom_checkpoint_0.pkl"  # the file of a checkpoint that holds the moving average
FROM_WEIGHTS = "start a new run in another --output_dir"


def claim(
    accelerator: Accelerator,
    options: FolderOptions,
    sources: Callable[[], Sources] | None = None,
    way: str | None = None,
    checkpoint: Path | None = None,
    fixed: Collection[str] | None = None,
) -> None:
    """Make the run folder this run's, after all validation; every rank calls this, and all raise where one thing is refused.

    sources: gives what the weights come from, called on the main process alone. way: how a new run starts from the weights of
    a run, {checkpoint} standing for the checkpoint's folder. checkpoint: what is resumed, where the options do not say it.
    fixed: see `provenance.compare`.
    """
    accelerator.wait_for_everyone()  # no rank writes before all have looked
    problem = None
    if accelerator.is_main_process:
        try:
            _claim(options, sources, way or FROM_WEIGHTS, checkpoint, fixed)
        except InputError as error:
            problem = str(error)
    refuse_together(accelerator, problem)


def _claim(
    options: FolderOptions,
    sources: Callable[[], Sources] | None,
    way: str,
    checkpoint: Path | None,
    fixed: Collection[str] | None,
) -> None:
    output_dir = Path(options.output_dir)
    found = {what: vars(source) for what, source in (sources() if sources else {}).items()}
    resumed = checkpoint or checkpoints.find(options.resume_from_checkpoint, output_dir)
    if resumed:
        check_resumed(resumed, options, found, way, fixed)
    if options.push_to_hub:
        hub.open_repository(output_dir, options)
    write_options(output_dir, options, found)


def check_resumed(
    checkpoint: Path, options: FolderOptions, sources: dict[str, Any], way: str, fixed: Collection[str] | None = None
) -> None:
    """Raise InputError if a run with these options and sources is not the one that wrote a checkpoint; say what may differ."""
    record = record_of(checkpoint)
    difference = compare(record, as_dict(options), sources, fixed)
    refused = difference.refused
    averages = isinstance(options, OptimizerOptions) and options.use_ema
    if not record and averages != (checkpoint / AVERAGE).exists():
        refused = [f"--use_ema was {not averages}, now {averages}"]
    if refused:
        raise InputError(refusal(checkpoint, refused, way))
    if sources and not record.get("sources"):
        print(f"note: {checkpoint} is of an earlier version and does not say what data and models it comes from")
    for text in difference.noted:
        print(f"note: from here on {text}")


def refusal(checkpoint: Path, refused: list[str], way: str) -> str:
    """Say what a resume must not change, old and new, and what to do instead."""
    listed = "".join(f"\n  {text}" for text in refused)
    return (
        f"{checkpoint}: of other data or options, and a resumed run must not change them:{listed}\n"
        f"give those of the run to resume it; to change them, {way.format(checkpoint=checkpoint)}"
    )


def refuse_together(accelerator: Accelerator, problem: str | None) -> None:
    """Raise on every rank what the main process refuses, said once; one process alone raises InputError."""
    if accelerator.num_processes == 1:
        if problem:
            raise InputError(problem)
        return
    from accelerate.utils import broadcast_object_list

    (refused,) = broadcast_object_list([problem])
    if not refused:
        return
    if accelerator.is_main_process:
        print(f"error: {refused}", file=sys.stderr, flush=True)
    accelerator.wait_for_everyone()  # else the first rank that ends has the others killed before the message is out
    raise SystemExit(2)
