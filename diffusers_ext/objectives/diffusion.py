"""What all denoising objectives share: draw (t, ε), diffuse, and name the target.

Shapes: B samples, latents (B, c, h, w).
"""

import torch
from diffusers import SchedulerMixin

from .. import randomness


def diffuse(
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    keys: list[randomness.Key],
    seed: int,
    timesteps: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (z_t, t, target) for clean latents, with z_t = √ᾱ_t z + √(1−ᾱ_t) ε (Ho et al. 2020, eq. 4).

    timesteps: (B,), or uniform where not given.

    Noise and timestep belong to the sample's key (epoch, index) and to nothing else. The target is what the model
    predicts: ε, the velocity v = √ᾱ_t ε − √(1−ᾱ_t) z (Salimans & Ho 2022), or z itself.
    """
    noise = randomness.normal(seed, "noise", keys, latents.shape[1:]).to(latents)
    if timesteps is None:
        timesteps = randomness.integers(seed, "timestep", keys, 0, scheduler.config.num_train_timesteps)
        timesteps = timesteps.to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    match scheduler.config.prediction_type:
        case "epsilon":
            target = noise
        case "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        case "sample":
            target = latents
        case other:
            raise ValueError(f"the scheduler's prediction_type {other!r} is not epsilon, v_prediction or sample")
    return noisy, timesteps, target
