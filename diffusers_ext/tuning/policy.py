"""The model that a reward teaches, with the guidance it will be sampled with, and the frozen base it came from."""

import copy

import torch
from torch import nn

from ..diffusion.base import Base
from ..diffusion.bases.encoders import Embeddings, Encoders, vae_scale_factor
from ..diffusion.lora import adapters_off, has_lora


class Policy(nn.Module):
    """A base whose network has adapters, or learns whole, and classifier-free guidance around it (Ho & Salimans 2022).

    Rewarding unguided pictures of a model that people sample with guidance teaches it to overshoot: give the scale that
    will be used. 1 is without guidance, at half the cost.

    Args:
        model: the base, whose text encoders may be None.
        empty: the embeddings that guidance leads away from, of one caption.
        keep_base: whether `base` will be asked for. With adapters it is free; a network that learns whole is copied.
    """

    def __init__(self, model: Base, empty: Embeddings, guidance_scale: float = 1.0, keep_base: bool = True):
        super().__init__()
        self.model, self.guidance_scale, self.embeddings = model, guidance_scale, tuple(empty)
        for name, value in empty.items():
            self.register_buffer(name, value)
        self.copy = None
        if keep_base and not has_lora(model.network):
            self.copy = copy.deepcopy(model.network).requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """The network that learns."""
        return self.model.network

    @property
    def encoders(self) -> Encoders:
        """What makes latents of pictures."""
        return self.model.encoders

    @property
    def empty(self) -> Embeddings:
        """The embeddings that guidance leads away from, by name, where the policy is."""
        return {name: getattr(self, name) for name in self.embeddings}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return getattr(self, self.embeddings[0]).device

    def noise_like(self, count: int, resolution: int) -> torch.Tensor:
        """Return an empty tensor of the latents of pictures of this side in pixels: (count, c, h, w) float32."""
        side = resolution // vae_scale_factor(self.encoders.vae_config)
        return torch.empty((count, self.model.latent_channels, side, side), device=self.device)

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, batch: dict, guided: bool = True) -> torch.Tensor:
        """Return the prediction (B, c, h, w), float32; batch: as `Encoders.conditioning` takes it, embedded.

        guided=False is without guidance, which is what denoising losses are of.
        """
        return self._predict(self.network, latents, timesteps, batch, guided)

    @torch.no_grad()
    def base(self, latents: torch.Tensor, timesteps: torch.Tensor, batch: dict, guided: bool = True) -> torch.Tensor:
        """Return what the frozen base predicts, as `forward` does."""
        if self.copy is not None:
            return self._predict(self.copy, latents, timesteps, batch, guided)
        with adapters_off(self.network):
            return self._predict(self.network, latents, timesteps, batch, guided)

    def _predict(
        self, network: nn.Module, latents: torch.Tensor, timesteps: torch.Tensor, batch: dict, guided: bool
    ) -> torch.Tensor:
        """ε(∅) + s (ε(text) − ε(∅)), both in one pass."""
        conditioning = self.encoders.conditioning(batch)
        if not guided or self.guidance_scale == 1:
            return self.model.predict(latents, timesteps, conditioning, network=network).float()
        empty = {name: value.to(batch[name]).expand_as(batch[name]) for name, value in self.empty.items()}
        both = self.encoders.conditioning({**batch, **empty}).followed_by(conditioning)
        doubled = torch.cat([latents, latents]), torch.cat([timesteps, timesteps])
        without, with_text = self.model.predict(*doubled, both, network=network).float().chunk(2)
        return without + self.guidance_scale * (with_text - without)
