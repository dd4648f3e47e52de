"""Two processes train what one does: gradients are means over the same samples, summed in another order.

Stated tolerances: every step's loss to 2e-5 of it, and all weights together to 1e-4 of their norm. train_incremental.py shares out
the encoding alone, and is equal to the bit; train_lads.py gives each process its own networks. train_image_text.py, whose pairs are
negatives of each other across processes: test_image_text.py.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainings import NAMES, Training

from diffusers_ext.engine.run_folder import read_metrics

BATCHES = {"controlnet": 2, "reward_model": 4, "reward_tuning": 2}  # of one process: twice the two processes'


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name, trainings, undisturbed, start, tmp_path):
    training, works = trainings[name], (tmp_path / "one", tmp_path / "two")
    run_both(start, training, BATCHES.get(name), *works)
    if name in BATCHES:
        compare_losses(*works)
        apart = distance(training, *works)
    else:
        apart = distance(training, undisturbed(name).work, works[1])
    assert apart <= (0.0 if name == "incremental" else 1e-4)


def test_two_processes_tune_a_controlnet_as_one(trainings, undisturbed, start, tmp_path):
    """train_control_reward.py, from the ControlNet that train_controlnet.py made."""
    control, works = trainings["controlnet"], (tmp_path / "one", tmp_path / "two")
    more = ("--controlnet_model_name_or_path", f"{undisturbed('controlnet').work}/run", "--reward_timestep_max", "600")
    training = Training("control_reward", (*control.words, *more), control.results, control.before)
    run_both(start, training, 2, *works)
    compare_losses(*works)
    assert distance(training, *works) <= 1e-4


def run_both(start, training: Training, batch: int | None, one: Path, two: Path) -> None:
    """Run with two processes, and where a batch is given with one process and that batch."""
    runs = [start(training, two, processes=2)] + ([start(training, one, "--train_batch_size", batch)] if batch else [])
    for done in [run.wait() for run in runs]:
        assert done.returncode == 0, done.stderr[-3000:]


def compare_losses(*works: Path) -> None:
    losses = [[row["loss"] for row in read_metrics(work / "run") if "loss" in row] for work in works]
    assert len(losses[0]) == 6
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=2e-5, atol=0)


def distance(training: Training, *works: Path) -> float:
    """How far the weights of two runs lie apart, in units of their norm."""
    first, second = (load_file(work / "run" / training.results[0]) for work in works)
    assert first.keys() == second.keys()
    apart = sum(float((first[key].double() - second[key].double()).square().sum()) for key in first) ** 0.5
    return apart / sum(float(value.double().square().sum()) for value in first.values()) ** 0.5
