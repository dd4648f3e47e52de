"""The sensor of following: zero before, positive once the network uses its condition, and the step it finds."""

import pytest
import torch

from diffusers_ext.control.gap import ConditionGap, snap
from diffusers_ext.data.batches import collate


@pytest.fixture
def batch(pairs):
    return collate([pairs[0, index] for index in range(8)])


def test_an_untrained_network_has_no_gap(objective, batch):
    measured = ConditionGap(objective, batch)()
    assert measured["gap"] == 0
    assert measured["held_out_loss"] == measured["held_out_loss_zero"] == measured["held_out_loss_wrong"] > 0


def test_a_network_that_uses_its_condition_has_one(objective, batch):
    """Train the tiny ControlNet on the very batch, long enough that the right condition helps."""
    from diffusers_ext.control.hint import init_hint

    init_hint(objective.controlnet, "data", batch["conditioning_pixel_values"], seed=0)
    optimizer = torch.optim.AdamW(objective.controlnet.parameters(), lr=3e-3)
    gap = ConditionGap(objective, batch)
    for _ in range(60):
        latents, text = objective.encode(batch)
        noisy, timesteps, target = objective.diffusion.diffuse(latents, batch["key"], torch.full((8,), 600))
        loss = (objective.predict(noisy, timesteps, text, batch["conditioning_pixel_values"]) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert gap()["gap"] > 0.05
    assert gap() == gap()


def test_the_gap_does_not_depend_on_how_many_pairs_fit_in_memory(objective, batch, monkeypatch):
    torch.manual_seed(0)
    for convolution in (
        objective.controlnet.controlnet_mid_block,
        objective.controlnet.controlnet_cond_embedding.conv_out,
    ):
        torch.nn.init.normal_(convolution.weight, std=0.5)  # so that the condition matters
    with torch.no_grad():
        together, sizes = ConditionGap(objective, batch, 8)(), []
        predict = objective.predict
        monkeypatch.setattr(
            objective, "predict", lambda noisy, *rest: sizes.append(len(noisy)) or predict(noisy, *rest)
        )
        apart = ConditionGap(objective, batch, 3)()
    assert sizes == [3] * 6 + [2] * 3
    assert together["gap"] != 0 and apart == pytest.approx(together, rel=1e-4, abs=1e-6)


def test_one_pair_is_not_enough(objective, pairs):
    with pytest.raises(ValueError, match="at least two"):
        ConditionGap(objective, collate([pairs[0, 0]]))


def rows(*gaps):
    return [{"step": 100 * (index + 1), "gap": gap} for index, gap in enumerate(gaps)]


@pytest.mark.parametrize(
    ("gaps", "step"),
    [
        ((0, 0.01, 0.4, 1.0), 300),
        ((0.3, 0.1, 0.5), 300),
        ((0, 0), None),
        ((0.5, 0.6), 100),
        ((0.5, 0.1), None),
        ((), None),
    ],
)
def test_the_snap_is_the_first_step_that_lasts(gaps, step):
    assert snap([{"step": 1, "loss": 1.0}, *rows(*gaps)]) == step
