"""The trainings that faults are tried on, each with its undisturbed run."""

import os
from pathlib import Path

import pytest
import trainings as all_trainings
from fork_server import environment

HERE = Path(__file__).parent


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
