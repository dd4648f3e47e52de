"""Checkpoints that are whole or absent: written beside, hashed, synced, then renamed into place.

`checkpoint-500/` holds the trained modules as ordinary model folders, accelerate's state (optimiser, schedule, scaler)
and `manifest.json`: the step, and size and SHA-256 of every file. `latest` takes the newest one whose files agree.
"""

import json
import os
import re
import shutil
import uuid
from pathlib import Path

from accelerate import Accelerator, PartialState

from ..disk import follow_umask, sha256
from ..disk import sync as _sync
from ..errors import InputError
from .objective import Objective

MANIFEST, OPTIONS = "manifest.json", "options.json"


def attach(accelerator: Accelerator, objective: Objective) -> None:
    """Make accelerate write and read the trainable modules as model folders instead of one dump of everything."""

    def save(models: list, weights: list, folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            objective.save(Path(folder))

    def load(models: list, folder: str) -> None:
        models.clear()
        objective.load(Path(folder))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save(accelerator: Accelerator, output_dir: Path, step: int, limit: int | None) -> None:
    """Write checkpoint-{step}; every rank calls this. A kill at any moment leaves the earlier checkpoints whole."""
    final, partial = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if (output_dir / OPTIONS).exists():  # so that it knows its own origin, wherever it goes
            shutil.copyfile(output_dir / OPTIONS, partial / OPTIONS)
        seal(partial, step)
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
        _sync(output_dir)
        if limit is not None:
            # Newer ones are of a branch that was left by resuming from an earlier step; they do not count, nor go.
            kept = [path for path in _numbered(output_dir) if _step(path) <= step]
            for old in kept[:-limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def find(resume: str | None, output_dir: Path) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` means, or None to start afresh.

    'latest' is the newest whole checkpoint of output_dir; damaged ones are named and passed over. A bare name lies in
    output_dir, as for diffusers' scripts; else it is a path. Either must be whole: InputError otherwise.
    """
    if resume is None:
        return None
    if resume != "latest":
        inside = output_dir / resume
        checkpoint = inside if len(Path(resume).parts) == 1 and inside.is_dir() else Path(resume)
        problem = damage(checkpoint) if checkpoint.exists() else _missing(output_dir)
        if problem:
            raise InputError(f"--resume_from_checkpoint {resume}: {problem}; give a checkpoint-N folder, or 'latest'")
        return checkpoint
    for candidate in reversed(_numbered(output_dir)):
        problem = damage(candidate)
        if problem is None:
            return candidate
        PartialState().print(f"passing over {candidate}: {problem}")
    return None


def _missing(output_dir: Path) -> str:
    """Say that a checkpoint is not there, and which ones are."""
    names = ", ".join(path.name for path in _numbered(output_dir))
    return f"there is no such folder; {output_dir} has {names or 'no checkpoint'}"


def set_aside(output_dir: Path, step: int) -> None:
    """Rename the checkpoints of later steps: the run continues from `step`, and they no longer belong to it."""
    for path in _numbered(output_dir):
        if _step(path) > step:
            path.rename(path.with_name(f"abandoned-{path.name}-{uuid.uuid4().hex[:6]}"))


def step_of(checkpoint: Path) -> int:
    """Return the number of optimiser steps behind a checkpoint."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["step"]


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint, or return None if every file is as it was written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"no readable {MANIFEST}"
    for name, entry in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        if sha256(path) != entry["sha256"]:
            return f"{name} was changed or damaged"
    return None


def _numbered(output_dir: Path) -> list[Path]:
    """The checkpoint-N folders, oldest first; checkpoint-old and the like are somebody else's."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def seal(folder: Path, step: int) -> None:
    """Write a folder's manifest: the step, and size and SHA-256 of every file, so that `damage` can tell."""
    follow_umask(folder)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": sha256(path)}
        _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    _sync(manifest)
    _sync(folder)
