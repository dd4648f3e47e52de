"""The frozen Stable Diffusion encoders: pictures to latents, captions to embeddings; and the check of a model folder.

Shapes: B samples, images (B, 3, H, W), latents (B, c, H/f, W/f), text embeddings (B, tokens, width).
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import randomness
from .errors import InputError

STABLE_DIFFUSION_PARTS = {
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "unet": "UNet2DConditionModel",
}


class StableDiffusionEncoders(nn.Module):
    """VAE encoder and CLIP text encoder of a Stable Diffusion 1.x or 2.x model."""

    def __init__(self, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer):
        super().__init__()
        self.vae, self.text_encoder, self.tokenizer = vae, text_encoder, tokenizer

    @classmethod
    def from_pretrained(cls, model: str, dtype: torch.dtype = torch.float32, **hub) -> "StableDiffusionEncoders":
        """Load the frozen encoders of a diffusers folder or repository; hub: revision, variant."""
        encoders = cls(
            AutoencoderKL.from_pretrained(model, subfolder="vae", dtype=dtype, **hub),
            CLIPTextModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype, **hub),
            CLIPTokenizer.from_pretrained(model, subfolder="tokenizer", revision=hub.get("revision")),
        )
        return encoders.requires_grad_(False).eval()

    def latents(self, pixels: torch.Tensor, keys: list[randomness.Key], seed: int) -> torch.Tensor:
        """Sample scaled latents z = s·(μ(x) + σ(x)·ε) of images in [-1, 1]; ε belongs to the sample's key."""
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        noise = randomness.normal(seed, "posterior", keys, posterior.mean.shape[1:]).to(posterior.mean)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    @torch.no_grad()
    def scale_latents(self, pixels: torch.Tensor) -> None:
        """Set the scaling factor s so that the latents of these images have unit standard deviation (Rombach et al. 2022, G)."""
        latents = self.vae.encode(pixels.to(self.vae.device)).latent_dist.mean
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))

    def embed(self, captions: list[str]) -> torch.Tensor:
        """Return the last hidden states of captions, padded and truncated to the tokenizer's length."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]


def vae_scale_factor(vae: AutoencoderKL) -> int:
    """Return pixels per latent position and side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def check_stable_diffusion(model: str) -> None:
    """Raise InputError unless `model` looks like a Stable Diffusion 1.x/2.x folder; repository names are left to the Hub."""
    folder = Path(model)
    if not folder.exists():
        if model.count("/") == 1 and not model.startswith((".", "/", "~")):
            return
        raise InputError(f"{model}: no such folder; give a diffusers folder or an owner/name on the Hub")
    index = folder / "model_index.json"
    if not index.exists():
        raise InputError(f"{model}: no model_index.json; give the folder that save_pretrained of a Stable Diffusion pipeline wrote")
    parts = json.loads(index.read_text(encoding="utf-8"))
    if "text_encoder_2" in parts:
        raise InputError(f"{index}: {parts.get('_class_name')} has two text encoders (SDXL); this script trains SD 1.x and 2.x")
    for part, wanted in STABLE_DIFFUSION_PARTS.items():
        found = parts.get(part, [None, None])[1]
        if found != wanted:
            raise InputError(f"{index}: {part} is {found}, expected {wanted}; give a Stable Diffusion 1.x or 2.x folder")
        if not (folder / part).is_dir():
            raise InputError(f"{folder / part}: missing, though model_index.json names it; the download is incomplete")
