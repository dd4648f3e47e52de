"""Tuning a ControlNet by agreement and by preference among conditions: gradients, masks, and what is refused."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from diffusers_ext.data.batches import collate
from diffusers_ext.errors import InputError
from diffusers_ext.rewards import agreement
from diffusers_ext.tuning.control import ConditionPath, ConditionPreferenceObjective, ConsistencyObjective, moved
from diffusers_ext.tuning.reward_path import check_gradient


@pytest.fixture
def batch(pairs):
    return collate([pairs[0, at] for at in range(4)])


def parts_of(objective) -> tuple:
    """The parts of a ControlNet that has learned something: its zero convolutions are not zero."""
    torch.manual_seed(0)
    controlnet = copy.deepcopy(objective.controlnet)
    for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.1)
    return controlnet, objective.base, objective.diffusion


def betas_of(path) -> list[float]:
    """The betas whose products are the path's ᾱ."""
    alphas = path.alphas_cumprod.double()
    return (1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])).tolist()


def gradients(objective, loss) -> torch.Tensor:
    learning = [each for each in objective.controlnet.parameters() if each.requires_grad]
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, learning)])


def consistency(objective, threshold=500, score=agreement.edges, weight=1.0) -> ConsistencyObjective:
    parts = parts_of(objective)
    encoders = objective.base.encoders
    decoder = copy.deepcopy(encoders.vae)
    with torch.no_grad():  # pictures that stay within [0, 1], where plain autograd needs no projection
        decoder.decoder.conv_out.weight.mul_(0.2)
    path = ConditionPath(score, encoders, decoder)
    return ConsistencyObjective(*parts, path=path, weight=weight, threshold=threshold)


def test_consistency_against_plain_autograd(objective, batch):
    tuned = consistency(objective, weight=0.7)
    found = tuned(batch)
    latents, text = tuned.encode(batch)
    noisy, t, noise = tuned.diffusion.diffuse(latents, batch["key"])
    prediction = tuned.predict(noisy, t, text, batch["conditioning_pixel_values"])
    total = (prediction - noise).square().mean()
    scheduler, vae = DDPMScheduler(trained_betas=betas_of(tuned.diffusion.path), clip_sample=False), tuned.path.decoder
    rewarded = 0
    for at in range(4):
        if t[at] <= 500:
            estimate = scheduler.step(prediction[at : at + 1], t[at], noisy[at : at + 1]).pred_original_sample
            pixels = vae.decode(estimate / vae.config.scaling_factor).sample / 2 + 0.5
            score = agreement.edges(pixels, batch["conditioning_pixel_values"][at : at + 1])
            total = total + 0.7 * (1 - score[0]) / 4
            rewarded += 1
    assert 0 < rewarded < 4
    expected = gradients(tuned, total)
    torch.testing.assert_close(found["loss"], total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradients(tuned, found["loss"]), expected, rtol=5e-3, atol=1e-3 * float(expected.abs().max())
    )


def test_only_samples_under_the_threshold_are_decoded(objective, batch, monkeypatch):
    decoded = []
    for threshold in (-1, 500, 1000):
        tuned = consistency(objective, threshold)
        whole = tuned.path.decode
        monkeypatch.setattr(tuned.path, "decode", lambda part, whole=whole: decoded.append(len(part)) or whole(part))
        decoded.clear()
        tuned(batch)
        assert sum(decoded) == int((tuned.diffusion.timesteps(batch["key"]) <= threshold).sum())
    assert sum(decoded) == 4


def test_cpo_against_its_formula(objective, batch):
    parts = parts_of(objective)
    tuned = ConditionPreferenceObjective(*parts, beta=10.0, margin=0.5, threshold=700)
    with torch.no_grad():
        for parameter in tuned.controlnet.controlnet_mid_block.parameters():
            parameter.add_(0.05)
    found = tuned(batch)
    latents, text = tuned.encode(batch)
    noisy, t, noise = tuned.diffusion.diffuse(latents, batch["key"])
    own = batch["conditioning_pixel_values"]
    other = moved(own, batch["key"], tuned.diffusion.seed)
    total = 0
    for at in range(4):
        row = {name: value[at : at + 1] for name, value in tuned.base.family.told(text).items()}

        def gap(network, at=at, row=row):
            errors = []
            for condition in (own, other):
                down, middle = network(
                    noisy[at : at + 1], t[at], **row, controlnet_cond=condition[at : at + 1], return_dict=False
                )
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
                prediction = tuned.base.network(noisy[at : at + 1], t[at], **row, **residuals).sample
                errors.append((prediction - noise[at : at + 1]).square().mean())
            return errors

        won, lost = gap(tuned.controlnet)
        with torch.no_grad():
            base_won, base_lost = gap(tuned.start)
            scale = 1 / (1 + torch.exp(-5.0 * ((won - lost) - (base_won - base_lost))))
        total = total + 0.05 * won / 4
        if t[at] <= 700:
            total = total + scale * (won - lost + 0.5).relu() / 4
    expected = gradients(tuned, total)
    torch.testing.assert_close(found["loss"], total, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        gradients(tuned, found["loss"]), expected, rtol=5e-3, atol=1e-3 * float(expected.abs().max())
    )


def test_the_losing_condition_is_another_and_belongs_to_the_key():
    conditions = torch.rand(3, 3, 16, 16)
    keys = [(0, 0), (0, 1), (1, 0)]
    found = moved(conditions, keys, seed=5)
    assert torch.equal(moved(conditions[1:2], keys[1:2], seed=5)[0], found[1])
    for before, after in zip(conditions, found):
        assert not torch.equal(before, after)
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)


def test_edges_judge_place_not_colour(pairs):
    pictures = torch.stack([pairs.picture(at) for at in range(8)]) / 2 + 0.5
    conditions = torch.stack([pairs.condition(at) for at in range(8)])
    right = agreement.edges(pictures, conditions)
    assert right.min() > 0.8
    assert (right > agreement.edges(pictures, conditions.roll(1, 0)) + 0.1).float().mean() >= 0.75
    torch.testing.assert_close(agreement.edges(1 - pictures, conditions), right, rtol=1e-3, atol=1e-3)


def test_colours_are_best_where_they_are_equal(pairs):
    pictures = torch.stack([pairs.picture(at) for at in range(4)]) / 2 + 0.5
    assert agreement.colours(pictures, pictures).abs().max() == 0
    assert agreement.colours(pictures, pictures.roll(1, 0)).max() < 0


def test_an_agreement_that_rounds_is_refused_before_training(objective, pairs):
    """The class of mistake of casting to uint8 on the way, as one official script does for HED."""

    def rounded(pictures, conditions):
        return agreement.edges((pictures * 255).to(torch.uint8).float() / 255, conditions)

    encoders = objective.base.encoders
    latents = torch.randn(2, 4, 8, 8)
    conditions = torch.stack([pairs.condition(at) for at in range(2)])
    with pytest.raises(InputError, match="gradient"):
        check_gradient(ConditionPath(rounded, encoders), latents, conditions, None)
    assert check_gradient(ConditionPath(agreement.edges, encoders), latents, conditions, None) is None
    with pytest.raises(InputError, match="edges, colours"):
        agreement.resolve("nonsense")
