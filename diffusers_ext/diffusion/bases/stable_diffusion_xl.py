"""Stable Diffusion XL (Podell et al. 2023): a U-Net that reads two CLIP text encoders, pooled text and picture sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from diffusers.configuration_utils import FrozenDict
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...errors import InputError
from ..conditioning import Conditioning
from .encoders import POOLED, TEXT, Embeddings, Encoders
from .stable_diffusion_1 import StableDiffusion1
from .unet import UNetFamily
from .unet_checks import pooled_width


class StableDiffusionXLEncoders(Encoders):
    """VAE encoder and both text encoders.

    The empty caption is embedded like any other. That is what diffusers' pipelines do with prompt="" and its SDXL training
    scripts with dropped captions. A negative prompt that is not given at all is another thing: there a pipeline with
    force_zeros_for_empty_prompt puts zeros, which no caption gives. To guide away from what dropped captions trained, draw
    with negative_prompt="".
    """

    reads_time_ids = True

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoders: tuple[CLIPTextModel | None, CLIPTextModelWithProjection | None],
        tokenizers: tuple[CLIPTokenizer | None, CLIPTokenizer | None],
        vae_config: FrozenDict | None = None,
    ):
        super().__init__(vae, vae_config)
        self.text_encoder: Any = text_encoders[0]
        self.text_encoder_2: Any = text_encoders[1]
        self.tokenizer: Any = tokenizers[0]
        self.tokenizer_2: Any = tokenizers[1]

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """z = s·(latent − m)/d, where the VAE names mean m and deviation d of each channel, else z = s·latent."""
        mean, std = self._statistics(latents)
        return super().normalise((latents - mean) / std)

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(latents)
        return super().denormalise(latents) * std + mean

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        config = self.vae_config
        if config.latents_mean is None or config.latents_std is None:
            return 0.0, 1.0
        mean, std = (latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        return mean, std

    def embed(self, captions: list[str]) -> Embeddings:
        """Return both encoders' penultimate hidden states side by side, and the pooled projection of the second."""
        hidden = []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
            output = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return {TEXT: torch.cat(hidden, dim=-1), POOLED: output.text_embeds}


class StableDiffusionXL(UNetFamily):
    """The family; see `diffusion.base.Family`."""

    name = "Stable Diffusion XL"
    pipeline = StableDiffusionXLPipeline
    control_pipeline = StableDiffusionXLControlNetPipeline
    parts: Mapping[str, str] = {
        **StableDiffusion1.parts,
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer_2": "CLIPTokenizer",
    }
    load_arguments: Mapping[str, Any] = {"add_watermarker": False}
    tells = "text_time"
    reads_time_ids = True
    obeys_force_upcast = True

    def told(self, conditioning: Conditioning) -> dict[str, Any]:
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        return {"encoder_hidden_states": conditioning.text, "added_cond_kwargs": added}

    def encoders(self, pipe: Any, vae_config: FrozenDict | None = None) -> StableDiffusionXLEncoders:
        """Return a pipeline's encoders; vae_config stands for its VAE's where it was loaded without one."""
        texts = (pipe.text_encoder, pipe.text_encoder_2)
        return StableDiffusionXLEncoders(pipe.vae, texts, (pipe.tokenizer, pipe.tokenizer_2), vae_config)

    def embedding_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        unet = self.network_class.load_config(folder, subfolder=self.network)
        return {**super().embedding_shapes(folder), POOLED: (pooled_width(unet),)}

    def load_tokenizer(self, name: str, folder: str | Path) -> CLIPTokenizer:
        raise InputError(
            "--tokenizer_name: SDXL has two tokenizers, which its two text encoders were trained with; leave it out"
        )
