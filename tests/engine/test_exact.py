"""Same seed, same run: twice, in one piece or interrupted, with workers, accumulation, averages and ranks.

What is compared is every loss, the SHA-256 of everything that enters the networks, and that of the weights at the end.
`test_train_controlnet.py` does the same to the script, with SIGKILL.
"""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from control_script import losses
from programs.interrupted import Interrupted, compare, train

from diffusers_ext.engine import checkpoints

PROGRAM = Path(__file__).parents[1] / "programs" / "interrupted.py"


def test_two_runs_of_60_steps_are_equal(untrained, circles, tmp_path):
    runs = []
    for name in ("first", "second"):
        seen: list[str] = []
        settings = {"max_train_steps": 60, "checkpointing_steps": 1000}
        runs.append((train(str(untrained), str(circles), tmp_path / name, seen, **settings), seen))
    assert runs[0] == runs[1] and len(set(runs[0][1])) == 60
    first, second = losses(tmp_path / "first"), losses(tmp_path / "second")
    assert first == second and list(first) == list(range(1, 61))


@pytest.mark.parametrize("use_ema", [False, True], ids=["weights", "average"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_interrupted_run_equals_a_whole_one(untrained, circles, tmp_path, accumulation, use_ema):
    settings = {"gradient_accumulation_steps": accumulation, "use_ema": use_ema}
    straight = None
    for workers in (0, 2):
        straight, (before, after, weights) = compare(
            str(untrained), str(circles), tmp_path, workers, straight, **settings
        )
        inputs, expected = straight
        assert len(set(inputs)) == 6 * accumulation
        assert before == inputs[: 5 * accumulation] and after == inputs[4 * accumulation :]
        assert weights == expected and losses(tmp_path / f"interrupted-{workers}") == losses(tmp_path / "straight")


@pytest.mark.launch
def test_an_interrupted_run_equals_a_whole_one_on_two_ranks(launch, untrained, circles, tmp_path):
    launch(PROGRAM, untrained, circles, tmp_path, processes=2)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for (inputs, expected), (before, after, weights) in ranks:
        assert before == inputs[:5] and after == inputs[4:] and weights == expected
    assert ranks[0][0][1] == ranks[1][0][1] and not set(ranks[0][0][0]) & set(ranks[1][0][0])
    assert losses(tmp_path / "interrupted-0") == losses(tmp_path / "straight")


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(untrained, circles, tmp_path, capsys):
    """The newest one is cut short, and folders that look like checkpoints lie about."""
    given, seen = (str(untrained), str(circles)), []
    expected = train(*given, tmp_path / "straight", seen)
    run, after = tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(*given, run, [], stop=5)
    weights = run / "checkpoint-4" / "controlnet" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    for name in ("checkpoint-old", "checkpoint-final"):
        shutil.copytree(run / "checkpoint-2", run / name)
    capsys.readouterr()
    assert train(*given, run, after, resume_from_checkpoint="latest") == expected and after == seen[2:]
    said = capsys.readouterr().out
    assert f"passing over {run / 'checkpoint-4'}" in said and f"resuming from {run / 'checkpoint-2'}" in said
    assert losses(run) == losses(tmp_path / "straight")
    assert (run / "checkpoint-old").is_dir() and (run / "checkpoint-final").is_dir()


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(folder: str) -> None:
    Path(folder, "weights.bin").write_bytes(bytes(10))
    die()


def written(folder: str) -> None:
    Path(folder, "weights.bin").write_bytes(bytes(100))


def save(run: Path, step: int, save_state=written) -> None:
    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, save_state=save_state)
    checkpoints.save(accelerator, run, step, limit=1)


# Where a kill finds `checkpoints.save`: the first is while accelerate writes, the others are steps of its own.
MOMENTS = {
    "writing": lambda: None,
    "hashing": lambda: setattr(checkpoints, "sha256", die),
    "syncing": lambda: setattr(checkpoints, "_sync", die),
    "renaming": lambda: setattr(checkpoints.os, "rename", die),
    "removing the older": lambda: setattr(checkpoints.shutil, "rmtree", lambda path, **more: more or die()),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path, moment):
    save(tmp_path, 10)

    def work():
        MOMENTS[moment]()
        save(tmp_path, 20, half_written if moment == "writing" else written)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    kept = 20 if moment == "removing the older" else 10
    assert checkpoints.find("latest", tmp_path) == tmp_path / f"checkpoint-{kept}"
    save(tmp_path, 20)  # the resumed run comes to the same step
    assert checkpoints.find("latest", tmp_path) == tmp_path / "checkpoint-20"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-20"}
