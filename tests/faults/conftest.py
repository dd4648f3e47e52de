"""The trainings that faults are tried on, each with its undisturbed run."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import trainings as all_trainings
from fork_server import environment
from safetensors.torch import load_file

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed: its folder, what it did with files there in order, and its CPU seconds."""

    work: Path
    calls: list[str]
    seconds: float


@pytest.fixture(scope="session")
def trainings(tmp_path_factory, untrained, circles) -> dict[str, all_trainings.Training]:
    return all_trainings.make(tmp_path_factory.mktemp("trainings"), untrained, circles)


@pytest.fixture(scope="session")
def start(fork_server):
    """Start a training in a folder, with a fault planted in it; returns what runs."""

    def run(training, work: Path, *more: object, fault: str = "", env: dict | None = None, processes: int = 1):
        paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        given = {"env": {**environment(), "PYTHONPATH": paths, **(env or {})}, "processes": processes}
        words = training.arguments(work, "--resume_from_checkpoint", "latest", *more)
        return fork_server.start(
            training.script, *words, before=f"import planting\n{training.before}\n{fault}", **given
        )

    return run


@pytest.fixture(scope="session")
def undisturbed(start, trainings, tmp_path_factory):
    """Return the undisturbed run of a training, made once."""
    made: dict[str, Whole] = {}

    def find(name: str) -> Whole:
        if name not in made:
            work = tmp_path_factory.mktemp(name)
            log = work.with_name(f"{work.name}.log")
            done = start(trainings[name], work, fault=f"planting.record({str(work)!r}, {str(log)!r})").wait()
            assert done.returncode == 0, done.stderr[-3000:]
            *calls, seconds = log.read_text().splitlines()
            made[name] = Whole(work, calls, float(seconds))
        return made[name]

    return find


@pytest.fixture(scope="session")
def same(undisturbed):
    """Raise AssertionError unless a run ended with the weights and metrics of the undisturbed one, byte for byte.

    Durations among the metrics are left out.
    """

    def compare(training: all_trainings.Training, work: Path) -> None:
        for name in training.results:
            found, expected = (contents(place / "run" / name) for place in (work, undisturbed(training.name).work))
            assert found == expected, f"{training.name}: {name} differs"

    return compare


def contents(path: Path) -> object:
    """What a file says: the bytes of each tensor, or the text without durations."""
    if path.suffix == ".safetensors":  # the order of what is said about them is not fixed
        return {name: (value.shape, value.numpy().tobytes()) for name, value in load_file(path).items()}
    return re.sub(r'"\w+_seconds": [^,}]+', "", path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def tally(request) -> dict[str, int]:
    """How many faults a test tries and how many were survived, for the line at the end; one each unless it says otherwise."""
    counts: dict[str, int] = {}
    request.node.user_properties.append(("faults", counts))
    return counts
