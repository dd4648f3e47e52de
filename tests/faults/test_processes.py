"""Two processes train what one does: gradients are means over the same samples, summed in another order.

Stated tolerances: every step's loss to 2e-5 of it, and all weights together to 1e-5 of their norm. train_incremental.py shares out
the encoding alone, and is equal to the bit; train_lads.py gives each process its own networks.
"""

import pytest
import torch
from safetensors.torch import load_file
from trainings import NAMES

from diffusers_ext.run_folder import read_metrics

BATCHES = {"controlnet": 2, "reward_model": 4, "reward_tuning": 2}  # of one process: twice the two processes'


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name, trainings, undisturbed, start, tmp_path):
    training = trainings[name]
    two = start(training, tmp_path / "two", processes=2).wait()
    assert two.returncode == 0, two.stderr[-3000:]
    one = undisturbed(name).work
    if name in BATCHES:
        one = tmp_path / "one"
        done = start(training, one, "--train_batch_size", BATCHES[name]).wait()
        assert done.returncode == 0, done.stderr[-3000:]
    works = (one, tmp_path / "two")
    if name in BATCHES:
        losses = [[row["loss"] for row in read_metrics(work / "run") if "loss" in row] for work in works]
        assert len(losses[0]) == 6
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=2e-5, atol=0)
    first, second = (load_file(work / "run" / training.results[0]) for work in works)
    assert first.keys() == second.keys()
    apart = sum(float((first[key].double() - second[key].double()).square().sum()) for key in first) ** 0.5
    whole = sum(float(value.double().square().sum()) for value in first.values()) ** 0.5
    assert apart <= (0.0 if name == "incremental" else 1e-5 * whole), apart / whole
