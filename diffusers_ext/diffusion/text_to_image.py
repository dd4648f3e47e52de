"""The two objectives that make a text-to-image model from nothing: the autoencoder's, then the denoiser's."""

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from .. import randomness
from ..engine.objective import Objective
from .base import Base
from .noising import Diffusion


class AutoencoderObjective(Objective):
    """‖x − D(z)‖² + β KL(q(z|x) ‖ N(0, 1)) per pixel and latent, z ~ q(z|x) (Kingma & Welling 2014, eq. 10)."""

    def __init__(self, vae: AutoencoderKL, seed: int, kl_weight: float = 3e-5):
        super().__init__()
        self.vae, self.seed, self.kl_weight = vae, seed, kl_weight
        self.trainable = {"vae": vae}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch["pixel_values"]: (B, 3, H, W) in [-1, 1]."""
        pixels = batch["pixel_values"]
        posterior = self.vae.encode(pixels).latent_dist
        noise = randomness.normal(self.seed, "posterior", batch["key"], posterior.mean.shape[1:]).to(pixels)
        error = F.mse_loss(self.vae.decode(posterior.mean + posterior.std * noise).sample, pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": error + self.kl_weight * kl, "reconstruction": error.detach(), "kl": kl.detach()}


class TextToImageObjective(Objective):
    """‖target − f_θ(z_t, t, τ_θ(text))‖²: denoiser f and text encoder τ learn together (Rombach et al. 2022, eq. 3)."""

    def __init__(self, base: Base, diffusion: Diffusion):
        super().__init__()
        self.base, self.diffusion = base, diffusion
        self.trainable = {base.family.network: base.network, "text_encoder": base.encoders.text_encoder}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: as `Encoders.latents` takes it, and "text", B strings."""
        encoders = self.base.encoders
        latents = encoders.latents(batch, self.diffusion.seed)
        noisy, timesteps, target = self.diffusion.diffuse(latents, batch["key"])
        prediction = self.base.predict(noisy, timesteps, encoders.conditioning(batch))
        return {"loss": self.diffusion.loss(prediction, target, timesteps)}
