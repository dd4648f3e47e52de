"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): a U-Net, and one CLIP text encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from transformers import CLIPTextModel, CLIPTokenizer

from . import clip
from .encoders import TEXT, Embeddings, Encoders
from .unet import UNetFamily


class StableDiffusionEncoders(Encoders):
    """VAE encoder and CLIP text encoder."""

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        vae_config: FrozenDict | None = None,
    ):
        super().__init__(vae, vae_config)
        self.text_encoder: Any = text_encoder
        self.tokenizer: Any = tokenizer

    def embed(self, captions: list[str]) -> Embeddings:
        """Return the last hidden states of captions, padded and truncated to the tokenizer's length."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return {TEXT: self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]}


class StableDiffusion1(UNetFamily):
    """The family; see `diffusion.base.Family`."""

    name = "Stable Diffusion 1.x or 2.x"
    pipeline = StableDiffusionPipeline
    control_pipeline = StableDiffusionControlNetPipeline
    parts: Mapping[str, str] = {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
    }
    load_arguments: Mapping[str, Any] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    tells = None

    def encoders(self, pipe: Any, vae_config: FrozenDict | None = None) -> StableDiffusionEncoders:
        """Return a pipeline's encoders; vae_config stands for its VAE's where it was loaded without one."""
        return StableDiffusionEncoders(pipe.vae, pipe.text_encoder, pipe.tokenizer, vae_config)

    def load_tokenizer(self, name: str, folder: str | Path) -> CLIPTokenizer:
        """Return another tokenizer for the base in `folder`; InputError if it does not fit."""
        return clip.load_tokenizer(name, str(folder))
