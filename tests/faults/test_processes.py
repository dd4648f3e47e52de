"""Two processes train what one does: gradients are means over the same samples, summed in another order.

The tolerance is of float32: 2e-5 of a loss, and 1e-4 of the largest weight of a tensor after so few steps of AdamW, which divides
small sums by their own size. train_incremental.py shares out the encoding alone and is equal to the bit.
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
    losses = [[row["loss"] for row in read_metrics(work / "run") if "loss" in row] for work in (one, tmp_path / "two")]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=2e-5, atol=1e-6)
    weights = [load_file(work / "run" / training.results[0]) for work in (one, tmp_path / "two")]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        bound = 0.0 if name == "incremental" else 1e-4 * float(value.abs().max()) + 1e-6
        torch.testing.assert_close(
            weights[1][key], value, rtol=0, atol=bound, msg=lambda said, key=key: f"{key}: {said}"
        )
