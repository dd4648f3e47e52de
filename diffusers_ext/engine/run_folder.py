"""The run folder: what a training leaves behind, readable without it.

`options.json` is the command, the resolved options and the versions; `metrics.jsonl` a row per step and per measurement;
`samples/step-000500.png` the grids. Checkpoints have a module of their own, the card too.
"""

import json
import math
import os
import platform
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from ..disk import write_atomically
from ..errors import InputError
from ..lines import journal_lines
from ..options import RunOptions, as_dict, check_writable, command_line
from .lock import LOCK, check_free, claim

OPTIONS, METRICS = "options.json", "metrics.jsonl"


class FolderOptions(Protocol):
    """What a run folder and its claim read of a training's options; `options.RunOptions` describes each."""

    output_dir: str
    resume_from_checkpoint: str | None
    push_to_hub: bool
    hub_model_id: str | None
    hub_token: str | None
    dry_run: bool


def check_run_folder(options: FolderOptions) -> None:
    """Raise InputError if output_dir holds anything that is not the run to be resumed, is in use or cannot be written."""
    folder = Path(options.output_dir)
    if options.dry_run:
        return
    check_writable("output_dir", folder, folder=True)
    if not folder.exists():
        return
    if os.environ.get("RANK", "0") == "0":  # the main process writes, and may hold the lock itself from an earlier run
        check_free(folder)
    begun = (LOCK, f".{OPTIONS}.")  # all that a run which was killed at once has left
    if all(path.name.startswith(begun) for path in folder.iterdir()) or (
        options.resume_from_checkpoint and (folder / OPTIONS).exists()
    ):
        return
    if (folder / OPTIONS).exists():
        raise InputError(
            f"{folder} already holds a run; continue it with --resume_from_checkpoint latest, or name another --output_dir"
        )
    raise InputError(f"{folder} is not empty and holds no run; name another --output_dir")


def write_options(output_dir: Path, options: FolderOptions, sources: dict[str, Any] | None = None) -> None:
    """Write options.json: the command, the resolved options, the versions and what the weights come from (see provenance).

    It can be given back as --config.

    From here on the folder is this run's: InputError if another got there first.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    claim(output_dir, options)
    for left in output_dir.glob(".*.partial"):  # of a run that was killed: nobody else writes now
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    record = {"command": command_line(), "options": as_dict(options), "versions": versions(), "sources": sources or {}}
    write_atomically(output_dir / OPTIONS, (json.dumps(record, indent=1) + "\n").encode())


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = ("torch", "diffusers", "transformers", "accelerate", "peft")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def save_sample(output_dir: Path, step: int, grid: Image.Image) -> Path:
    """Write a grid as samples/step-000500.png and return its path."""
    path = Path(output_dir) / "samples" / f"step-{step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    return path


def read_metrics(output_dir: Path, name: str = METRICS) -> list[dict]:
    """Return the rows of metrics.jsonl, or of another such file; a last line cut short by a kill is dropped."""
    path, rows = Path(output_dir) / name, []
    for line in journal_lines(path):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Metrics:
    """metrics.jsonl: a row per step, the mean over accumulation and ranks; and the same in the trackers, where there are.

    Values stay on the device until `flush`, so that logging does not stall the GPU; a NaN ends the run there. A tracker
    that fails never does: what it raised is printed, once for each kind of call.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, options: RunOptions, first: int):
        self.accelerator, self.path = accelerator, output_dir / METRICS
        self.micro: list[dict[str, torch.Tensor]] = []
        self.rows: list[tuple[dict, torch.Tensor]] = []
        self.told: set[str] = set()
        if accelerator.is_main_process:
            kept = [row for row in read_metrics(output_dir) if row["step"] <= first]
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        if accelerator.log_with:
            plain = {
                name: value for name, value in as_dict(options).items() if isinstance(value, (int, float, str, bool))
            }
            self._guarded("start", lambda: accelerator.init_trackers(options.tracker_project_name, config=plain))

    def gather(self, parts: dict[str, torch.Tensor]) -> None:
        self.micro.append({name: value.detach().float() for name, value in parts.items()})

    def close_step(self, step: int, learning_rate: float, norm: torch.Tensor) -> None:
        self.names = list(self.micro[0])
        means = [torch.stack([parts[name] for parts in self.micro]).mean() for name in self.names]
        self.rows.append(
            (
                {"step": step, "lr": learning_rate},
                torch.stack([*means, torch.as_tensor(norm).float().to(means[0].device)]),
            )
        )
        self.micro.clear()

    def flush(self) -> dict[str, str]:
        """Write the rows gathered since the last flush; return what the progress bar shows."""
        values = self.accelerator.reduce(torch.stack([row for _, row in self.rows]), "mean").tolist()
        rows = [{**head, **dict(zip([*self.names, "grad_norm"], value))} for (head, _), value in zip(self.rows, values)]
        self.rows.clear()
        for row in rows:
            self._write(row)
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(
                    f"loss is {row['loss']} at step {row['step']}; lower --learning_rate, or use --mixed_precision bf16 or no, "
                    "then --resume_from_checkpoint latest"
                )
        return {"loss": f"{rows[-1]['loss']:.4f}", "lr": f"{rows[-1]['lr']:.1e}"}

    def note(self, step: int, seen: dict[str, Any]) -> None:
        """Write what a preview measured, and show its pictures to the trackers: numbers, and lists of pictures by tag."""
        pictures = {tag: images for tag, images in seen.items() if isinstance(images, list)}
        measures = {name: value for name, value in seen.items() if name not in pictures}
        if measures:
            self._write({"step": step, **measures})
        self._each_tracker("log_images", lambda tracker: log_pictures(tracker, step, pictures))

    def finish(self) -> None:
        """Close the trackers."""
        self._each_tracker("finish", lambda tracker: tracker.finish())
        self.accelerator.trackers.clear()  # Accelerator.end_training would close them again

    def _write(self, row: dict) -> None:
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        values = {name: value for name, value in row.items() if name != "step"}
        self._each_tracker("log", lambda tracker: tracker.log(values, step=row["step"]))

    def _each_tracker(self, name: str, act: Callable[[GeneralTracker], None]) -> None:
        for tracker in self.accelerator.trackers:  # none but on the main process
            self._guarded(f"{tracker.name}.{name}", partial(act, tracker))

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            if name not in self.told:
                self.accelerator.print(
                    f"tracker: {name} failed ({type(error).__name__}: {error}); training continues, {self.path} has every number"
                )
            self.told.add(name)


def log_pictures(tracker: GeneralTracker, step: int, pictures: dict[str, list[Image.Image]]) -> None:
    """Show lists of pictures of one size to a tracker, each list under its tag; trackers of numbers only are left alone."""
    if not pictures or not hasattr(tracker, "log_images"):
        return
    values = {tag: np.stack([np.asarray(image.convert("RGB")) for image in images]) for tag, images in pictures.items()}
    layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
    tracker.log_images(values, step=step, **layout)
