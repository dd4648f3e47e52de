"""The frozen encoders that every base has: pictures to latents through a VAE, captions to embeddings.

Shapes: B samples, images (B, 3, H, W), latents (B, c, H/f, W/f), text embeddings (B, tokens, width).
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn

from ... import randomness
from ..conditioning import Conditioning

# What `embed` returns for captions, by the names that batches have for it.
TEXT, POOLED = "text_embeddings", "pooled_embeddings"
Embeddings = dict[str, torch.Tensor]


class Encoders(nn.Module):
    """The VAE of a base, and, in children, its text encoders.

    Where batches bring moments and embeddings, all parts may be None, and vae_config stands for the VAE's.
    """

    reads_time_ids = False

    def __init__(self, vae: AutoencoderKL | None, vae_config: FrozenDict | None = None):
        super().__init__()
        self.vae: Any = vae
        self._vae_config = vae_config

    @property
    def vae_config(self) -> FrozenDict:
        """The VAE's configuration."""
        return self._vae_config if self.vae is None else self.vae.config

    @torch.no_grad()
    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return μ and σ of q(z|x), stacked, in float32, rounded to the VAE's type, in which a cache keeps them.

        (B, 3, H, W) in [-1, 1] -> (B, 2, c, h, w).
        """
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1).to(self.vae.dtype).float()

    def latents(self, batch: dict, seed: int) -> torch.Tensor:
        """Sample normalised latents, (B, c, h, w), of μ + σ·ε; ε belongs to the sample's key.

        batch: "key", and "moments" (B, 2, c, h, w) or, where they are not known yet, "pixel_values" (B, 3, H, W) in [-1, 1].
        """
        moments = batch["moments"] if "moments" in batch else self.moments(batch["pixel_values"])
        mean, std = moments.unbind(1)
        noise = randomness.normal(seed, "posterior", batch["key"], mean.shape[1:]).to(mean)
        return self.normalise(mean + std * noise)

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Scale the VAE's latents to what the network sees: z = s·latent."""
        return latents * self.vae_config.scaling_factor

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo `normalise`: what the network sees, as the VAE's decoder takes it."""
        return latents / self.vae_config.scaling_factor

    @torch.no_grad()
    def scale_latents(self, pixels: torch.Tensor) -> None:
        """Set the scaling factor s so that the latents of these images have unit standard deviation (Rombach et al. 2022, G)."""
        latents = self.vae.encode(pixels.to(self.vae.device)).latent_dist.mean
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))

    def embed(self, captions: list[str]) -> Embeddings:
        """Return the embeddings of captions: TEXT (B, tokens, width), and POOLED (B, width) where the base reads it."""
        raise NotImplementedError

    def conditioning(self, batch: dict) -> Conditioning:
        """Return what the network is told of a batch: its embeddings, or where they are not known yet those of "text".

        batch: "text_embeddings" (and "pooled_embeddings"), or "text", B strings; and "time_ids" (B, 6) where the base
        reads them.
        """
        embeddings = batch if TEXT in batch else self.embed(batch["text"])
        time_ids = batch["time_ids"] if self.reads_time_ids else None
        return Conditioning(embeddings[TEXT], embeddings.get(POOLED), time_ids)


class FullPrecisionAutoencoderKL(AutoencoderKL):
    """An autoencoder that computes in its weights' type under autocast too, for those that overflow in float16."""

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        with torch.autocast(x.device.type, enabled=False):
            return super().encode(x.to(self.dtype), return_dict)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | torch.Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return super().decode(z.to(self.dtype), return_dict, generator)


def vae_config(folder: str | Path) -> FrozenDict:
    """Return the configuration of a VAE's folder without making one; what the file leaves out has diffusers' default."""
    parameters = inspect.signature(AutoencoderKL.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    return FrozenDict({**defaults, **AutoencoderKL.load_config(folder)})


def vae_scale_factor(config: FrozenDict) -> int:
    """Return pixels per latent position and side, from a VAE's configuration.

    >>> from diffusers import AutoencoderKL
    >>> vae_scale_factor(AutoencoderKL(block_out_channels=(32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
    ...     up_block_types=("UpDecoderBlock2D",) * 3).config)
    4
    """
    return 2 ** (len(config.block_out_channels) - 1)
