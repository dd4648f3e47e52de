"""What every benchmark shares: options, clocks, turns, spreads, finished rows, and a report that is printed and kept as JSON.

    python benchmarks/harness.py benchmarks/results/lads.json      # print the tables of a result

A benchmark is a script with a docstring (its question, command, cost and columns), a dataclass of options that extends
`BenchmarkOptions`, and `main(options, report)`, which ends with `harness.run(main, Options)`. It measures with `timed` and
`take_turns`, keeps long runs' rows in a `Journal`, and gives its figures to `report.table`. With --output the report
is written as JSON: question, command, commit, date, versions, machine, options, seconds and tables.

Nothing here imports torch before the options are parsed, so that --help answers at once.
"""

import json
import math
import os
import platform
import resource
import runpy
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from spreads import KINDS, Spread

import __main__
from diffusers_ext import options as command_line
from diffusers_ext.disk import write_atomically
from diffusers_ext.errors import InputError
from diffusers_ext.lines import journal_lines, read_text
from diffusers_ext.options import COUNT, group, option, parse

ROOT = Path(__file__).parents[1]
T = TypeVar("T", bound="BenchmarkOptions")


@group("benchmark")
@dataclass
class BenchmarkOptions:
    """What every benchmark can be asked."""

    output: str | None = option(
        None, "JSON file for the figures, such as benchmarks/results/lads.json; default: only print them", path="file"
    )
    threads: int = option(1, "threads of torch", COUNT)


# Time and memory


class Timing(NamedTuple):
    """Seconds of a call, of the CPU and of the clock, and what it returned."""

    cpu: float
    wall: float
    result: Any


def timed(call: Callable[[], Any]) -> Timing:
    """Run a call once."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall, result)


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 0) -> dict[str, list[Timing]]:
    """Run every side once a round, in one order and then in the other, so that a drift of the machine meets all alike.

    warm_up: rounds before those that count.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    for number in range(-warm_up, rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            timing = timed(sides[name])
            if number >= 0:
                timings[name].append(timing)
                print(f"round {number + 1}, {name}: {timing.cpu:.2f} CPU s", file=sys.stderr, flush=True)
    return timings


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the processes that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Finished rows


class Journal:
    """A file of JSON lines, one for each finished measurement, by which a long benchmark resumes after an interruption.

    Its first line holds the options that rows depend on; other ones are refused.
    """

    def __init__(self, path: str | Path, options: BenchmarkOptions, selecting: Iterable[str] = ()):
        """selecting: options that only say which rows to measure, or where."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict] = []
        for line in journal_lines(self.path):
            try:
                self.rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # cut short by a kill
        ignored = {"output", "output_dir", "threads", *selecting}
        settings = {name: value for name, value in command_line.as_dict(options).items() if name not in ignored}
        self._start_with(json.loads(json.dumps({"options": settings})))

    def _start_with(self, first: dict) -> None:
        if not self.rows:
            self._append(first)
        for name, value in self.rows[0].get("options", {}).items():
            if first["options"].get(name) != value:
                raise InputError(
                    f"{self.path}: its rows are of --{name} {value}, not {first['options'].get(name)}; "
                    "repeat that option, or give another folder"
                )

    def _append(self, row: dict) -> None:
        self.rows.append(row)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(row) + "\n")

    def once(self, about: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict:
        """Return the row that is about this; measure and append it, with its "cpu_seconds", if there is none yet."""
        about = json.loads(json.dumps(dict(about)))
        for row in self.rows:
            if about.items() <= row.items():
                return row
        seconds, _, measures = timed(measure)
        row = json.loads(json.dumps({"cpu_seconds": round(seconds, 1), **about, **measures}))
        self._append(row)
        print(f"{self.path.name}: {about}", file=sys.stderr, flush=True)
        return row


def run_script(name: str, *arguments: object) -> None:
    """Run the main function of training/NAME.py in this process."""
    script = runpy.run_path(str(ROOT / "training" / f"{name}.py"))
    script["main"](parse(script["Options"], [str(argument) for argument in arguments]))


# Reports


@dataclass
class Report:
    """The tables of one benchmark, printed as they come."""

    name: str
    question: str
    options: dict[str, Any]
    tables: list[dict] = field(default_factory=list)
    began: Timing = field(default_factory=lambda: Timing(cpu_seconds(), time.perf_counter(), None))

    def table(self, title: str, rows: Iterable[Mapping[str, Any]], digits: str | Mapping[str, str] = ".3f") -> None:
        """Add and print a table; a row is {column: text, number, Spread or None}.

        digits: how its floats and Spreads are printed, as a format, or one for each column (others: .3f).
        """
        rows = [dict(row) for row in rows]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        formats = {column: digits if isinstance(digits, str) else digits.get(column, ".3f") for column in columns}
        formats = {column: spec for column, spec in formats.items() if any(_is_float(row.get(column)) for row in rows)}
        self.tables.append({"title": title, "columns": columns, "formats": formats, "rows": rows})
        print(f"\n{as_markdown(self.tables[-1])}", flush=True)

    def as_dict(self) -> dict[str, Any]:
        """Return everything that is known of this run, ready for JSON."""
        tables = [{**table, "rows": [plain(row) for row in table["rows"]]} for table in self.tables]
        commit = git("rev-parse", "HEAD")
        return {
            "benchmark": self.name,
            "question": self.question,
            "command": shlex.join(["python", f"benchmarks/{self.name}.py", *sys.argv[1:]]),
            "commit": commit,
            "uncommitted_changes": None
            if commit is None
            else bool(git("status", "--porcelain", "--untracked-files=no")),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "versions": versions(),
            "machine": machine(),
            "options": self.options,
            "cpu_seconds": round(cpu_seconds() - self.began.cpu, 1),
            "wall_seconds": round(time.perf_counter() - self.began.wall, 1),
            "peak_memory_mib": round(peak_memory()),
            "tables": tables,
        }

    def write(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(Path(path), text.encode("utf-8"))


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON has it: a Spread as an object, a number that is not finite as null."""
    values: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, Spread):
            value = {
                "value": value.value,
                "low": value.low,
                "high": value.high,
                "count": value.count,
                "kind": value.kind,
            }
        elif hasattr(value, "item"):
            value = value.item()
        finite = not isinstance(value, float) or math.isfinite(value)
        values[column] = value if finite else None
    return values


def as_markdown(table: Mapping[str, Any]) -> str:
    """Return a table of a report, or of its JSON, as Markdown, with its title and what its spreads are."""
    lines = ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
    kinds: dict[str, None] = {}
    for row in table["rows"]:
        cells = []
        for column in table["columns"]:
            value = row.get(column)
            if isinstance(value, dict):
                value = Spread(**value)
            if isinstance(value, Spread) and value.count > 1:
                kinds[KINDS[value.kind]] = None
            cells.append(_cell(value, table["formats"].get(column, "")))
        lines.append("| " + " | ".join(cells) + " |")
    title = "; ".join([table["title"], *kinds])
    return "\n".join([title, "", *lines])


def _is_float(value: Any) -> bool:
    return value is not None and not isinstance(value, str | int)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return format(value, spec)


def machine() -> dict[str, Any]:
    """Describe this machine without naming it: processor, cores, memory, accelerators."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "processor": names[0] if names else platform.machine(),
        "vectors": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags],
        "cores": os.cpu_count(),
        "memory_gib": memory and round(memory),
        "system": platform.system(),
        "accelerators": _accelerators(),
        "load_at_the_end": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    from diffusers_ext.engine.run_folder import versions

    return versions()


def git(*words: str) -> str | None:
    """Return what git says of this checkout; None where there is none."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def run(main: Callable[[T, Report], None], cls: type[T]) -> None:
    """Parse the command line of the script that runs, run its main function, and write what it reported."""

    def measure(options: T) -> None:
        import torch

        torch.set_num_threads(options.threads)
        name = Path(__main__.__file__).stem
        report = Report(name, (__main__.__doc__ or "").split("\n\n")[0], command_line.as_dict(options))
        main(options, report)
        if options.output is not None:
            report.write(options.output)

    command_line.run(measure, cls)


@dataclass
class ShowOptions:
    """What printing results can be asked."""

    results: list[str] = option([], "JSON files that benchmarks have written", positional=True, path="read")


def show(options: ShowOptions) -> None:
    """Print the command, the commit and the tables of results."""
    for path in options.results:
        try:
            result = json.loads(read_text(path))
            print(f"\n{result['question']}\n\n    {result['command']}\n")
            print(f"{result['date']}, commit {(result['commit'] or 'unknown')[:9]}, {result['machine']['processor']}")
            for table in result["tables"]:
                print(f"\n{as_markdown(table)}")
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a result that a benchmark wrote ({error})") from None


if __name__ == "__main__":
    command_line.run(show, ShowOptions)
