"""The forward process, its draws and its loss, each against its formula."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import VariancePreserving, path_of
from diffusers_ext.errors import InputError

KEYS = [(epoch, index) for epoch in range(4) for index in range(1000)]
OPTIONS = {
    "seed": 0,
    "snr_gamma": None,
    "noise_offset": 0.0,
    "timestep_sampling": "uniform",
    "timestep_min": 0,
    "timestep_max": None,
    "loss_type": "l2",
    "huber_delta": 0.1,
}


def scheduler(prediction="epsilon", **settings):
    return DDPMScheduler(prediction_type=prediction, beta_schedule="scaled_linear", **settings)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_targets_recover_the_clean_latents(prediction):
    process = Diffusion(path_of(scheduler(prediction)), seed=0)
    clean = torch.randn(5, 4, 8, 8)
    noisy, timesteps, target = process.diffuse(clean, KEYS[:5])
    alpha = process.path.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    recovered = {
        "epsilon": (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt(),
        "v_prediction": alpha.sqrt() * noisy - (1 - alpha).sqrt() * target,
        "sample": target,
    }[prediction]
    torch.testing.assert_close(recovered, clean, atol=1e-3, rtol=1e-3)


def test_an_unknown_prediction_type_is_refused():
    odd = VariancePreserving(scheduler().alphas_cumprod, "flow")
    with pytest.raises(ValueError, match="'flow' is not epsilon"):
        Diffusion(odd, seed=0).diffuse(torch.zeros(1, 4, 8, 8), [(0, 0)])


@pytest.mark.parametrize(
    ("sampling", "distribution"),
    [
        ("uniform", lambda t: t),
        ("cubic", lambda t: 1 - (1 - t) ** (1 / 3)),  # P(1 − u³ < t)
        ("logit_normal", lambda t: torch.special.ndtr(torch.logit(torch.tensor(t))).item()),
    ],
)
def test_timesteps_follow_their_distribution_within_the_window(sampling, distribution):
    process = Diffusion(path_of(scheduler()), seed=0, timestep_sampling=sampling, timestep_min=200, timestep_max=700)
    drawn = process.timesteps(KEYS)
    assert drawn.dtype == torch.int64 and drawn.min() >= 200 and drawn.max() < 700
    shares = (drawn.double() - 200) / 500
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert (shares < quantile).double().mean().item() == pytest.approx(distribution(quantile), abs=0.03)


def test_noise_offset_adds_a_constant_per_picture_and_channel():
    clean = torch.zeros(1000, 4, 8, 8)
    plain, offset = (
        Diffusion(path_of(scheduler()), seed=0, noise_offset=value).noise(clean, KEYS[:1000]) for value in (0.0, 0.3)
    )
    added = offset - plain
    assert added.std(dim=(2, 3)).max() < 1e-6
    assert added.mean(dim=(2, 3)).std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_clean_latents_error(prediction):
    """Whatever is predicted, an error of size e in the clean latent costs min(SNR, γ)·e²."""
    process = Diffusion(path_of(scheduler(prediction)), seed=0, snr_gamma=5.0)
    timesteps = torch.tensor([10, 300, 600, 900])
    alpha = process.path.alphas_cumprod[timesteps]
    # The same error in z, seen in ε and in v: dε = −√ᾱ/√(1−ᾱ) dz and dv = −1/√(1−ᾱ) dz at fixed z_t.
    size = {"epsilon": (alpha / (1 - alpha)).sqrt(), "v_prediction": (1 - alpha).rsqrt(), "sample": torch.ones(4)}[
        prediction
    ]
    snr = alpha / (1 - alpha)
    np.testing.assert_allclose(process.weights(timesteps) * size**2, snr.clamp(max=5), rtol=1e-4)
    error = size.reshape(-1, 1, 1, 1).expand(4, 4, 8, 8)
    assert process.loss(error, torch.zeros_like(error), timesteps).item() == pytest.approx(
        snr.clamp(max=5).mean().item(), rel=1e-4
    )


def test_plain_losses():
    prediction, target, timesteps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    error = prediction - target
    l2 = Diffusion(path_of(scheduler()), seed=0).loss(prediction, target, timesteps)
    assert l2.item() == pytest.approx(error.square().mean().item())
    huber = Diffusion(path_of(scheduler()), seed=0, loss_type="huber", huber_delta=0.5).loss(
        prediction, target, timesteps
    )
    size = error.abs()
    expected = torch.where(size < 0.5, 0.5 * size**2, 0.5 * (size - 0.25))
    assert huber.item() == pytest.approx(expected.mean().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep_min": 500, "timestep_max": 500}, "no timestep of 0..999 is left"),
        ({"timestep_max": 5000}, "--timestep_max 5000: the base has the timesteps 0 to 999; give at most 1000"),
        ({"timestep_min": 1000}, "--timestep_min 1000: the base has the timesteps 0 to 999; give at most 999"),
        ({"snr_gamma": 0.0}, "--snr_gamma must be positive"),
        ({"huber_delta": -1.0}, "--huber_delta must be positive"),
        ({"snr_gamma": 1e-9}, "so nothing would be learnt"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Diffusion.from_options(path_of(scheduler()), SimpleNamespace(**{**OPTIONS, **change}))
    assert Diffusion.from_options(path_of(scheduler()), SimpleNamespace(**OPTIONS)).loss_type == "l2"


ZERO = {"rescale_betas_zero_snr": True, "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("window", [{}, {"timestep_min": 998}, {"timestep_min": 999}])
def test_min_snr_of_noise_at_zero_snr_is_refused(window):
    """min(SNR, γ) / SNR is 0 / 0 there."""
    given = SimpleNamespace(**{**OPTIONS, "snr_gamma": 5.0, **window})
    with pytest.raises(InputError, match="timestep 999 is 0/0"):
        Diffusion.from_options(path_of(scheduler(**ZERO)), given)
    assert Diffusion.from_options(path_of(scheduler(**ZERO)), SimpleNamespace(**OPTIONS))
    before = SimpleNamespace(**{**OPTIONS, "snr_gamma": 5.0, "timestep_max": 999})
    weights = Diffusion.from_options(path_of(scheduler(**ZERO)), before).weights(torch.arange(999))
    assert weights.isfinite().all() and weights.max() <= 1


def test_min_snr_of_velocity_at_zero_snr_is_zero_and_told(capsys):
    given = {**OPTIONS, "snr_gamma": 5.0}
    process = Diffusion.from_options(path_of(scheduler("v_prediction", **ZERO)), SimpleNamespace(**given))
    assert process.weights(torch.tensor([999])).item() == 0
    assert "timestep 999, of signal-to-noise ratio 0, the weight 0" in capsys.readouterr().out
    for kind in ("v_prediction", "sample"):
        with pytest.raises(InputError, match="nothing would be learnt"):
            Diffusion.from_options(path_of(scheduler(kind, **ZERO)), SimpleNamespace(**{**given, "timestep_min": 999}))
