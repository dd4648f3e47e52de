"""Paths against diffusers' schedulers and closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_ext.diffusion.paths import Straight, VariancePreserving, mix, path_of, split, target
from diffusers_ext.diffusion.sampler import Sampler

CLEAN, NOISE = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_the_path_of_ddpm_is_diffusers_bit_for_bit(prediction, rescaled):
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, rescale_betas_zero_snr=rescaled
    )
    path, timesteps = path_of(scheduler), torch.tensor([3, 999])
    at = path.coefficients(timesteps, CLEAN)
    assert torch.equal(mix(CLEAN, NOISE, at), scheduler.add_noise(CLEAN, NOISE, timesteps))
    velocity = scheduler.get_velocity(CLEAN, NOISE, timesteps)
    assert torch.equal(target("v_prediction", CLEAN, NOISE, at), velocity)
    assert path.steps == 1000 and path.prediction == prediction


def test_the_straight_path_is_that_of_flow_matching():
    scheduler = FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps[[10, 700]]
    at = Straight().coefficients(timesteps, CLEAN)
    torch.testing.assert_close(mix(CLEAN, NOISE, at), scheduler.scale_noise(CLEAN, timesteps, NOISE))
    assert torch.equal(target("flow_prediction", CLEAN, NOISE, at), NOISE - CLEAN)


def test_sigma_keeps_its_precision_in_half_precision_latents():
    """bfloat16 has 355 different values for the 1000 timesteps; σ is computed before it is rounded."""
    timesteps = torch.arange(1, 1001).float()
    at = Straight().coefficients(timesteps, torch.zeros(1000, 1, 1, 1, dtype=torch.float32))
    assert len(at.sigma.flatten().unique()) == 1000


@pytest.mark.parametrize(
    ("path", "kind", "timesteps"),
    [
        *(
            (VariancePreserving(DDPMScheduler().alphas_cumprod, kind), kind, torch.tensor([50, 400]))
            for kind in ("epsilon", "v_prediction", "sample")
        ),
        (Straight(), "flow_prediction", torch.tensor([50.5, 400.0])),
    ],
)
def test_split_undoes_mix_and_target(path, kind, timesteps):
    at = path.coefficients(timesteps, CLEAN)
    found = split(kind, mix(CLEAN, NOISE, at), target(kind, CLEAN, NOISE, at), at)
    torch.testing.assert_close(torch.stack(found), torch.stack([CLEAN, NOISE]), rtol=1e-3, atol=1e-4)


def test_steps_on_a_straight_path_are_eulers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    sampler = Sampler.straight(scheduler.sigmas, Straight(), seed=0)
    torch.testing.assert_close(sampler.timesteps, scheduler.timesteps)
    latents, ours = NOISE, NOISE
    keys, field = [(0, 0), (0, 1)], lambda z, t: torch.sin(z + t[:, None, None, None] / 1000)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(field(latents, timestep.expand(2)), timestep, latents).prev_sample
    ours = sampler.advance(lambda z, t, batch: field(z, t), NOISE, {"key": keys}, 0, 5)
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-5)


def test_ancestral_steps_keep_ddims_variance():
    """η = 1 is ancestral sampling: the variance of diffusers' DDIM, computed from α² and σ² alone."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    sampler = Sampler.of(scheduler, 10, seed=0, eta=1.0)
    scheduler.set_timesteps(10)
    for number in (0, 5, 8):
        now, after = int(sampler.timesteps[number]), int(sampler.timesteps[number]) - 100
        torch.testing.assert_close(sampler.variance[number], scheduler._get_variance(now, after))
