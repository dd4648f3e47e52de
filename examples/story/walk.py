"""Walk through steps: print each command, run it, and write down what it took, so that the next call goes on from there."""

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.publish.loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[2]
RECORDS = "steps.jsonl"


@dataclass(frozen=True)
class Step:
    """Commands that belong together. online: they speak to a Hub, which is then served from hub/ in the story's folder."""

    name: str
    title: str
    commands: tuple[str, ...]
    online: bool = False


def walk(folder: Path, steps: Sequence[Step], call: Callable[[str, dict], None] | None = None) -> None:
    """Run the commands that no earlier walk finished; stops at the first that fails.

    call: runs a command with additional environment variables; by default as a process in the repository's root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = {row["command"] for row in read_records(folder) if row["done"]}
    with LoopbackHub(folder / "hub") as hub:
        for step in steps:
            left = [command for command in step.commands if command not in done]
            print(f"\n=== {step.name}: {step.title}" + ("" if left else " (done before)"), flush=True)
            for command in left:
                perform(folder, step, command, online(folder, hub.url) if step.online else {}, call or run_process)


def perform(folder: Path, step: Step, command: str, variables: dict, call: Callable[[str, dict], None]) -> None:
    """Run one command and record its time, whether it ends well or not."""
    print("\n$ " + command, flush=True)
    record = {"step": step.name, "command": command, "done": False}
    wall, cpu = time.perf_counter(), cpu_seconds()
    try:
        call(command, variables)
        record["done"] = True
    finally:
        record |= {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(cpu_seconds() - cpu, 1)}
        with open(folder / RECORDS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def run_process(command: str, variables: dict) -> None:
    """Run a command as typed at the repository's root; its failure ends the walk with its exit code."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    settings = {"PATH": path, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(shlex.split(command), cwd=ROOT, env={**os.environ, **settings, **variables})
    if done.returncode:
        print(f"\nstopped with exit code {done.returncode}; the same command goes on from here", file=sys.stderr)
        raise SystemExit(done.returncode)


def online(folder: Path, url: str) -> dict[str, str]:
    """The environment in which the Hub is the one on this machine, with a cache of its own and nobody's token."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str((folder / "hub-cache").resolve()),
        "HF_TOKEN": "hf_story",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def cpu_seconds() -> float:
    """CPU time of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def read_records(folder: Path) -> list[dict]:
    """Return the rows of steps.jsonl, one per command that ended."""
    return read_metrics(folder, RECORDS)
