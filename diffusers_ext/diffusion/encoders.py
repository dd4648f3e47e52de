"""The frozen encoders of Stable Diffusion 1.x, 2.x and XL: pictures to latents, captions to embeddings.

Shapes: B samples, images (B, 3, H, W), latents (B, c, H/f, W/f), text embeddings (B, tokens, width).
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.configuration_utils import FrozenDict
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .. import randomness
from ..errors import InputError
from ..publish.model_files import read_json

SD_PARTS = {
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "unet": "UNet2DConditionModel",
}
CAPTIONS_AT_ONCE = 10_000  # so many go through the tokenizer together
SDXL_PARTS = {**SD_PARTS, "text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}


class StableDiffusionEncoders(nn.Module):
    """VAE encoder and CLIP text encoder of a Stable Diffusion 1.x or 2.x model.

    Where batches bring moments and text embeddings, all three parts may be None, and vae_config stands for the VAE's.
    """

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        vae_config: FrozenDict | None = None,
    ):
        super().__init__()
        self.vae, self.text_encoder, self.tokenizer = vae, text_encoder, tokenizer
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
        """Sample scaled latents z = s·(μ + σ·ε): (B, c, h, w); ε belongs to the sample's key.

        batch: "key", and "moments" (B, 2, c, h, w) or, where they are not known yet, "pixel_values" (B, 3, H, W) in [-1, 1].
        """
        moments = batch["moments"] if "moments" in batch else self.moments(batch["pixel_values"])
        mean, std = moments.unbind(1)
        noise = randomness.normal(seed, "posterior", batch["key"], mean.shape[1:]).to(mean)
        return self.normalise(mean + std * noise)

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Scale the VAE's latents to what the U-Net sees: z = s·latent."""
        return latents * self.vae_config.scaling_factor

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo `normalise`: what the U-Net sees, as the VAE's decoder takes it."""
        return latents / self.vae_config.scaling_factor

    @torch.no_grad()
    def scale_latents(self, pixels: torch.Tensor) -> None:
        """Set the scaling factor s so that the latents of these images have unit standard deviation (Rombach et al. 2022, G)."""
        latents = self.vae.encode(pixels.to(self.vae.device)).latent_dist.mean
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))

    def conditioning(self, batch: dict) -> dict:
        """Return the arguments that U-Net and ControlNet take beside z_t and t; batch: as `text` takes it."""
        return {"encoder_hidden_states": self.text(batch)}

    def text(self, batch: dict) -> torch.Tensor:
        """Return a batch's text embeddings: "text_embeddings", or where they are not known yet, those of "text"."""
        return batch["text_embeddings"] if "text_embeddings" in batch else self.embed(batch["text"])

    def embed(self, captions: list[str]) -> torch.Tensor:
        """Return the last hidden states of captions, padded and truncated to the tokenizer's length."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]


class StableDiffusionXLEncoders(StableDiffusionEncoders):
    """VAE encoder and both text encoders of a Stable Diffusion XL model.

    The empty caption is embedded like any other. That is what diffusers' pipelines do with prompt="" and its SDXL training
    scripts with dropped captions. A negative prompt that is not given at all is another thing: there a pipeline with
    force_zeros_for_empty_prompt puts zeros, which no caption gives. To guide away from what dropped captions trained, draw
    with negative_prompt="".

    pooled_width: that of the second encoder's projection.
    """

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoders: tuple[CLIPTextModel | None, CLIPTextModelWithProjection | None],
        tokenizers: tuple[CLIPTokenizer | None, CLIPTokenizer | None],
        pooled_width: int,
        vae_config: FrozenDict | None = None,
    ):
        super().__init__(vae, text_encoders[0], tokenizers[0], vae_config)
        self.text_encoder_2, self.tokenizer_2, self.pooled_width = text_encoders[1], tokenizers[1], pooled_width

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
        return tuple(latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))

    def conditioning(self, batch: dict) -> dict:
        """batch: as `text` takes it, and "time_ids" (B, 6) of `Frame.time_ids` (Podell et al. 2023, 2.2)."""
        rows = self.text(batch)
        added = {"text_embeds": rows[:, -1, : self.pooled_width], "time_ids": batch["time_ids"]}
        return {"encoder_hidden_states": rows[:, :-1], "added_cond_kwargs": added}

    def embed(self, captions: list[str]) -> torch.Tensor:
        """Return both encoders' penultimate hidden states side by side and, in one more row, the pooled projection.

        (B, tokens + 1, width), the last row filled up with zeros: one tensor a caption, so that a cache keeps it whole.
        """
        hidden = []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
            output = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        states, pooled = torch.cat(hidden, dim=-1), output.text_embeds
        return torch.cat([states, F.pad(pooled, (0, states.shape[2] - self.pooled_width))[:, None]], dim=1)


def load_tokenizer(name: str, folder: str) -> CLIPTokenizer:
    """Return another tokenizer for the base in `folder`.

    Raises InputError if it cannot be read, knows more tokens than the text encoder, or the base is SDXL.
    """
    if is_sdxl(folder):
        raise InputError(
            "--tokenizer_name: SDXL has two tokenizers, which its two text encoders were trained with; leave it out"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of transformers and tokenizers, which have many
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(
            f"--tokenizer_name {name}: no tokenizer that can be read ({why:.120}); give a folder with tokenizer_config.json and "
            "vocab.json or tokenizer.json, or a name on the Hub"
        ) from error
    encoder = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")
    if len(tokenizer) > encoder.vocab_size:
        raise InputError(
            f"--tokenizer_name {name}: {len(tokenizer)} tokens, but the base's text encoder knows {encoder.vocab_size}"
        )
    if tokenizer.model_max_length > encoder.max_position_embeddings:
        raise InputError(
            f"--tokenizer_name {name}: pads to {tokenizer.model_max_length:.4g} tokens, but the base's text encoder has"
            f" {encoder.max_position_embeddings} positions; set model_max_length in its tokenizer_config.json"
        )
    return tokenizer


def cut_captions(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> str | None:
    """Say how many captions are longer than the text encoder reads, and by how much; None where none is."""
    limit, over = tokenizer.model_max_length, {}
    distinct = list(dict.fromkeys(captions))
    for first in range(0, len(distinct), CAPTIONS_AT_ONCE):
        some = distinct[first : first + CAPTIONS_AT_ONCE]
        lengths = map(len, tokenizer(some, truncation=False, verbose=False).input_ids)
        over |= {caption: length - limit for caption, length in zip(some, lengths) if length > limit}
    if not over:
        return None
    longest = max(over, key=over.__getitem__)
    by = f"{min(over.values())} to {max(over.values())}" if len(set(over.values())) > 1 else str(over[longest])
    return (
        f"{len(over):,} of {len(distinct):,} different captions are longer than the {limit} tokens that the text encoder reads, by {by}"
        f" tokens; what is beyond is cut off. The longest begins {longest[:60]!r}"
    )


def encoders_of(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, vae_config: FrozenDict | None = None
) -> StableDiffusionEncoders:
    """Return a pipeline's encoders; vae_config stands for its VAE's where it was loaded without them."""
    if not isinstance(pipe, StableDiffusionXLPipeline):
        return StableDiffusionEncoders(pipe.vae, pipe.text_encoder, pipe.tokenizer, vae_config)
    second = pipe.text_encoder_2
    width = second.config.projection_dim if second else pooled_width(pipe.unet.config)
    return StableDiffusionXLEncoders(
        pipe.vae, (pipe.text_encoder, second), (pipe.tokenizer, pipe.tokenizer_2), width, vae_config
    )


def pooled_width(unet: Mapping[str, Any]) -> int:
    """Return how much of an SDXL U-Net's added embedding is pooled text, by its config: all that the six time ids leave."""
    return unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]


def load_stable_diffusion(
    folder: str | Path, dtype: torch.dtype = torch.float32, variant: str | None = None, **parts: Any
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Load a Stable Diffusion 1.x, 2.x or XL pipeline, frozen, without safety checker and watermark.

    variant: of its weight files. parts: those to use as they are, by their names in the pipeline, or None to do without.
    """
    if is_sdxl(folder):
        pipe = StableDiffusionXLPipeline.from_pretrained(
            folder, dtype=dtype, add_watermarker=False, variant=variant, **parts
        )
    else:
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, variant=variant, **without, **parts)
    for name, part in pipe.components.items():
        if name not in parts and isinstance(
            part, nn.Module
        ):  # what is given stays as it is: its decoder may be learning
            part.requires_grad_(False).eval()
    return pipe


def parts_of(folder: str | Path) -> dict[str, str]:
    """The parts of a model folder that `check_stable_diffusion` accepts, and their classes."""
    return SDXL_PARTS if is_sdxl(folder) else SD_PARTS


def is_sdxl(folder: str | Path) -> bool:
    """Say whether a model folder has SDXL's second text encoder."""
    return "text_encoder_2" in _index(Path(folder))


def vae_config(folder: str | Path) -> FrozenDict:
    """Return the configuration of a VAE's folder without making one; what the file leaves out has diffusers' default."""
    parameters = inspect.signature(AutoencoderKL.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    return FrozenDict({**defaults, **AutoencoderKL.load_config(folder)})


def vae_scale_factor(config: FrozenDict) -> int:
    """Return pixels per latent position and side, from a VAE's configuration."""
    return 2 ** (len(config.block_out_channels) - 1)


def _index(folder: Path) -> dict:
    return read_json(folder / "model_index.json")


def check_resolution(resolution: int, vae: FrozenDict, unet: FrozenDict) -> None:
    """Raise InputError unless images of this side halve evenly all the way down the autoencoder and the U-Net."""
    if unet.in_channels != vae.latent_channels:
        raise InputError(
            f"the base's U-Net takes {unet.in_channels} channels, its autoencoder gives {vae.latent_channels}: "
            "an inpainting model, or an autoencoder of another kind of model; give a plain text-to-image one"
        )
    multiple = vae_scale_factor(vae) * 2 ** (len(unet.block_out_channels) - 1)
    if resolution < multiple or resolution % multiple:
        raise InputError(f"--resolution {resolution}: this base needs a multiple of {multiple}")


def far_above_native(resolution: int, vae: FrozenDict, unet: FrozenDict) -> str | None:
    """Return a warning where images are more than twice as long as those that the base was made for, else None."""
    size = unet.get("sample_size")
    native = size * vae_scale_factor(vae) if isinstance(size, int) else resolution
    if resolution <= 2 * native:
        return None
    times = round((resolution / native) ** 2)
    return (
        f"warning: --resolution {resolution}: the base was made for {native}, so a picture has {times} times its pixels, "
        f"takes at least {times} times as long and comes out worse; give --resolution {native}, or another base"
    )
