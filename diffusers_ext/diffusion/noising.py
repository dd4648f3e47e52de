"""What all denoising objectives share: draw (t, ε), diffuse, name the target, weigh the error.

Shapes: B samples, latents (B, c, h, w).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from accelerate import PartialState
from torch.nn import functional as F

from .. import randomness
from ..errors import InputError
from ..randomness import Key
from .paths import VariancePreserving, mix, target

NO_WEIGHT = 1e-3  # a weight below this teaches nothing beside the usual ones, which are near 1


class NoiseOptions(Protocol):
    """What `Diffusion.from_options` reads of a training's options; `options.DiffusionOptions` describes each."""

    seed: int
    snr_gamma: float | None
    noise_offset: float
    timestep_sampling: str
    timestep_min: int
    timestep_max: int | None
    loss_type: str
    huber_delta: float


class Diffused(NamedTuple):
    """Noised latents z_t (B, c, h, w), their timesteps (B,), and what a model should predict of them (B, c, h, w)."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Diffusion:
    """The path of a base and the loss on what a model predicts; fields as in `options.DiffusionOptions`.

    Noise and timestep belong to a sample's key (epoch, index) and to nothing else.

    >>> from diffusers import DDPMScheduler
    >>> from diffusers_ext.diffusion.paths import path_of
    >>> diffusion = Diffusion(path_of(DDPMScheduler()), seed=0)
    >>> noisy, timesteps, target = diffusion.diffuse(torch.zeros(2, 4, 8, 8), [(0, 0), (0, 1)])
    >>> noisy.shape, timesteps.shape, float(diffusion.loss(target, target, timesteps))
    (torch.Size([2, 4, 8, 8]), torch.Size([2]), 0.0)
    """

    path: VariancePreserving
    seed: int
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    timestep_sampling: str = "uniform"
    timestep_min: int = 0
    timestep_max: int | None = None
    loss_type: str = "l2"
    huber_delta: float = 0.1

    @classmethod
    def from_options(cls, path: VariancePreserving, options: NoiseOptions) -> "Diffusion":
        """Raises InputError if the timestep window is empty, a value is out of range, or snr_gamma gives no weights."""
        end = path.steps
        high = end if options.timestep_max is None else options.timestep_max
        for name, value, most in (
            ("timestep_max", high, end),
            ("timestep_min", options.timestep_min, end - 1),
        ):
            if value > most:
                raise InputError(f"--{name} {value}: the base has the timesteps 0 to {end - 1}; give at most {most}")
        if not 0 <= options.timestep_min < high:
            raise InputError(
                f"--timestep_min {options.timestep_min} --timestep_max {options.timestep_max}: no timestep of 0..{end - 1} is left"
            )
        if options.snr_gamma is not None and options.snr_gamma <= 0:
            raise InputError(f"--snr_gamma must be positive, got {options.snr_gamma}")
        if options.huber_delta <= 0:
            raise InputError(f"--huber_delta must be positive, got {options.huber_delta}")
        diffusion = cls(
            path,
            options.seed,
            options.snr_gamma,
            options.noise_offset,
            options.timestep_sampling,
            options.timestep_min,
            high,
            options.loss_type,
            options.huber_delta,
        )
        if options.snr_gamma is not None:
            diffusion._check_weights()
        return diffusion

    def diffuse(self, latents: torch.Tensor, keys: list[Key], timesteps: torch.Tensor | None = None) -> Diffused:
        """Noise clean latents (B, c, h, w): z_t = α_t z_0 + σ_t ε; timesteps: (B,) int64, or drawn where not given."""
        noise = self.noise(latents, keys)
        timesteps = (self.timesteps(keys) if timesteps is None else timesteps).to(latents.device)
        at = self.path.coefficients(timesteps, latents)
        return Diffused(mix(latents, noise, at), timesteps, target(self.path.prediction, latents, noise, at))

    @torch.compiler.disable
    def noise(self, latents: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        """ε ~ N(0, 1), plus a constant per picture and channel of deviation noise_offset (Guttenberg 2023)."""
        noise = randomness.normal(self.seed, "noise", keys, latents.shape[1:])
        if self.noise_offset:
            noise += self.noise_offset * randomness.normal(self.seed, "offset", keys, (latents.shape[1], 1, 1))
        return noise.to(latents)

    @torch.compiler.disable
    def timesteps(self, keys: list[Key]) -> torch.Tensor:
        """Draw (B,) timesteps of [timestep_min, timestep_max).

        cubic: 1 − u³, towards high noise (T2I-Adapter, Mou et al. 2023, section 3.4); logit_normal: σ(n), towards the
        middle (Esser et al. 2024, section 3.1), both as a share of the window.
        """
        end = self.path.steps
        low, high = self.timestep_min, end if self.timestep_max is None else self.timestep_max
        if self.timestep_sampling == "uniform":
            return randomness.integers(self.seed, "timestep", keys, low, high)
        normal = randomness.normal(self.seed, "timestep", keys, ()).double()
        share = {"cubic": 1 - torch.special.ndtr(normal) ** 3, "logit_normal": normal.sigmoid()}[self.timestep_sampling]
        return (low + share * (high - low)).long().clamp(max=high - 1)

    def loss(self, prediction: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the mean error, weighted by `weights` where snr_gamma is given; a scalar."""
        if self.loss_type == "huber":
            error = F.huber_loss(prediction.float(), target.float(), reduction="none", delta=self.huber_delta)
        else:
            error = F.mse_loss(prediction.float(), target.float(), reduction="none")
        if self.snr_gamma is None:
            return error.mean()
        return (error.mean(dim=(1, 2, 3)) * self.weights(timesteps)).mean()

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """min(SNR_t, γ) as a weight on the clean latent's error, in terms of what is predicted (Hang et al. 2023, eq. 8).

        The error in z is that in ε over SNR, and that in v over SNR + 1.
        """
        alphas_cumprod = self.path.alphas_cumprod.to(timesteps.device)
        alpha, sigma = alphas_cumprod**0.5, (1 - alphas_cumprod) ** 0.5
        snr = (alpha[timesteps] / sigma[timesteps]) ** 2
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[self.path.prediction]
        return snr.clamp(max=self.snr_gamma) / divisor

    def _check_weights(self) -> None:
        """Refuse `weights` that are not defined or leave nothing to learn, and say where they are zero.

        Where the signal-to-noise ratio is 0, the weight in ε is min(SNR, γ) / SNR, so 0 / 0; in v and z it is 0.
        """
        window = torch.arange(self.timestep_min, self.timestep_max)
        empty = [int(timestep) for timestep in window if self.path.alphas_cumprod[timestep] == 0]
        if empty and self.path.prediction == "epsilon":
            raise InputError(
                f"--snr_gamma: this base's betas are rescaled to zero terminal SNR and it predicts epsilon, for which the weight"
                f" at timestep {empty[0]} is 0/0; leave out --snr_gamma, give --timestep_max {empty[0]}, or, if the base was"
                " trained for v_prediction, set prediction_type in its scheduler_config.json"
            )
        if (largest := self.weights(window).max()) < NO_WEIGHT:
            raise InputError(
                f"--snr_gamma gives no timestep of --timestep_min {self.timestep_min} --timestep_max {self.timestep_max} a"
                f" weight above {largest:.1g}, so nothing would be learnt; leave out --snr_gamma, or widen the window"
            )
        if empty:
            PartialState().print(
                f"note: --snr_gamma gives timestep {empty[0]}, of signal-to-noise ratio 0, the weight 0: nothing is learnt there"
            )
