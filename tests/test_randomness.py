"""Draws are functions of their key, and the order of samples is a function of the seed."""

import numpy as np
import pytest
import torch
from scipy import stats

from diffusers_ext import randomness
from diffusers_ext.randomness import MicroBatches, Share


def keys_of(ranks: int, rank: int, *, samples=50, batch=2, accumulation=3, start=0, stop=12, seed=0):
    return list(MicroBatches(samples, seed, Share(batch, stop, start, accumulation, ranks, rank)))


def test_a_draw_does_not_depend_on_its_company():
    keys = [(0, index) for index in range(8)]
    together = randomness.normal(1, "noise", keys, (4, 3))
    alone = torch.cat([randomness.normal(1, "noise", [key], (4, 3)) for key in reversed(keys)]).flip(0)
    assert torch.equal(together, alone)
    fresh = randomness.generator(1, "noise", 0, 5).standard_normal((4, 3), dtype=np.float32)
    assert np.array_equal(together[5].numpy(), fresh)


@pytest.mark.parametrize("change", [{"seed": 1}, {"stream": "other"}, {"keys": [(1, 0)]}, {"keys": [(0, 1)]}])
def test_every_part_of_the_key_counts(change):
    base = {"seed": 0, "stream": "noise", "keys": [(0, 0)], "shape": (64,)}
    assert not torch.equal(randomness.normal(**base), randomness.normal(**{**base, **change}))


def test_neighbouring_keys_are_independent():
    noise = randomness.normal(
        0, "noise", [(epoch, index) for epoch in range(20) for index in range(50)], (256,)
    ).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(noise)[~np.eye(1000, dtype=bool)]
    assert abs(correlation).max() < 6 / 16  # six standard deviations of a correlation of 256 pairs
    timesteps = randomness.integers(0, "timestep", [(0, index) for index in range(20_000)], 0, 1000).numpy()
    assert timesteps.min() == 0 and timesteps.max() == 999
    assert stats.kstest(timesteps / 1000, "uniform").pvalue > 1e-3


def test_every_epoch_visits_every_sample_once():
    keys = [key for batch in keys_of(1, 0, samples=10, batch=2, accumulation=1, stop=15) for key in batch]
    for epoch in range(3):
        visited = [index for at, index in keys if at == epoch]
        assert sorted(visited) == list(range(10))
    assert keys[:10] != [(0, index) for index in range(10)] and [k[1] for k in keys[:10]] != [k[1] for k in keys[10:20]]


@pytest.mark.parametrize(("ranks", "batch", "accumulation"), [(2, 2, 3), (1, 4, 3), (3, 2, 2), (4, 3, 1), (1, 12, 1)])
def test_a_steps_samples_do_not_depend_on_how_it_is_split(ranks, batch, accumulation):
    def steps(ranks, batch, accumulation):
        parts = [keys_of(ranks, rank, batch=batch, accumulation=accumulation) for rank in range(ranks)]
        return [
            sorted(
                key
                for part in parts
                for micro in part[step * accumulation : (step + 1) * accumulation]
                for key in micro
            )
            for step in range(12)
        ]

    assert steps(ranks, batch, accumulation) == steps(1, 2, 6)


def test_ranks_never_share_a_draw():
    first, second = ([key for micro in keys_of(2, rank) for key in micro] for rank in range(2))
    assert not set(first) & set(second)
    noise = [randomness.normal(0, "noise", keys, (16,)) for keys in (first, second)]
    assert not (noise[0][:, None] == noise[1][None]).all(-1).any()
    steps = [randomness.integers(0, "timestep", keys, 0, 1000).reshape(12, -1) for keys in (first, second)]
    assert not (steps[0] == steps[1]).all(dim=1).any()


def test_resuming_goes_on_where_it_stopped():
    whole = keys_of(2, 1, stop=12)
    assert whole[5 * 3 :] == keys_of(2, 1, start=5, stop=12)
    assert len(MicroBatches(50, 0, Share(2, 12, 5, 3, 2, 1))) == 21
