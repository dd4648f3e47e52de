"""The model that a reward teaches, with the guidance it will be sampled with, and the frozen base it came from."""

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ..diffusion.encoders import StableDiffusionEncoders
from ..diffusion.lora import adapters_off, has_lora


class Policy(nn.Module):
    """A U-Net with adapters, or one that learns whole, and classifier-free guidance around it (Ho & Salimans 2022).

    Rewarding unguided pictures of a model that people sample with guidance teaches it to overshoot: give the scale that
    will be used. 1 is without guidance, at half the cost.

    Args:
        encoders: say how text embeddings condition the U-Net; their own parts may be None.
        empty: (tokens, width), the embedding that guidance leads away from.
        keep_base: whether `base` will be asked for. With adapters it is free; a U-Net that learns whole is copied.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoders: StableDiffusionEncoders,
        empty: torch.Tensor,
        guidance_scale: float = 1.0,
        keep_base: bool = True,
    ):
        super().__init__()
        self.unet, self.encoders, self.guidance_scale = unet, encoders, guidance_scale
        self.register_buffer("empty", empty)
        self.copy = None
        if keep_base and not has_lora(unet):
            self.copy = copy.deepcopy(unet).requires_grad_(False)

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, batch: dict, guided: bool = True) -> torch.Tensor:
        """Return the prediction, float32; batch: as `StableDiffusionEncoders.conditioning` takes it, embedded.

        guided=False is without guidance, which is what denoising losses are of.
        """
        return self._predict(self.unet, latents, timesteps, batch, guided)

    @torch.no_grad()
    def base(self, latents: torch.Tensor, timesteps: torch.Tensor, batch: dict, guided: bool = True) -> torch.Tensor:
        """Return what the frozen base predicts, as `forward` does."""
        if self.copy is not None:
            return self._predict(self.copy, latents, timesteps, batch, guided)
        with adapters_off(self.unet):
            return self._predict(self.unet, latents, timesteps, batch, guided)

    def _predict(self, unet, latents: torch.Tensor, timesteps: torch.Tensor, batch: dict, guided: bool) -> torch.Tensor:
        """ε(∅) + s (ε(text) − ε(∅)), both in one pass."""
        given = {name: batch[name] for name in ("text_embeddings", "time_ids") if name in batch}
        if not guided or self.guidance_scale == 1:
            return unet(latents, timesteps, **self.encoders.conditioning(given)).sample.float()
        both = {name: torch.cat([values, values]) for name, values in given.items()}
        both["text_embeddings"][: len(latents)] = self.empty.to(given["text_embeddings"])
        doubled = torch.cat([latents, latents]), torch.cat([timesteps, timesteps])
        without, with_text = unet(*doubled, **self.encoders.conditioning(both)).sample.float().chunk(2)
        return without + self.guidance_scale * (with_text - without)
