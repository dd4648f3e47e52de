"""The frozen Stable Diffusion encoders: pictures to latents, captions to embeddings; and the check of a model folder.

Shapes: B samples, images (B, 3, H, W), latents (B, c, H/f, W/f), text embeddings (B, tokens, width).
"""

import inspect
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict
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

ENCODERLESS = {"vae": None, "text_encoder": None, "tokenizer": None}


class StableDiffusionEncoders(nn.Module):
    """VAE encoder and CLIP text encoder of a Stable Diffusion 1.x or 2.x model.

    Where batches bring moments and text embeddings, all three parts may be None, and scaling_factor stands for the VAE's.
    """

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        scaling_factor: float | None = None,
    ):
        super().__init__()
        self.vae, self.text_encoder, self.tokenizer = vae, text_encoder, tokenizer
        self._scaling_factor = scaling_factor

    @property
    def scaling_factor(self) -> float:
        """s of z = s·latent."""
        return self._scaling_factor if self.vae is None else self.vae.config.scaling_factor

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
        return (mean + std * noise) * self.scaling_factor

    @torch.no_grad()
    def scale_latents(self, pixels: torch.Tensor) -> None:
        """Set the scaling factor s so that the latents of these images have unit standard deviation (Rombach et al. 2022, G)."""
        latents = self.vae.encode(pixels.to(self.vae.device)).latent_dist.mean
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))

    def text(self, batch: dict) -> torch.Tensor:
        """Return a batch's text embeddings: "text_embeddings", or where they are not known yet, those of "text"."""
        return batch["text_embeddings"] if "text_embeddings" in batch else self.embed(batch["text"])

    def embed(self, captions: list[str]) -> torch.Tensor:
        """Return the last hidden states of captions, padded and truncated to the tokenizer's length."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]


def load_stable_diffusion(model: str, dtype: torch.dtype = torch.float32, **hub) -> StableDiffusionPipeline:
    """Load a Stable Diffusion 1.x/2.x pipeline, frozen, without its safety checker.

    hub: revision, variant, and parts to use as they are, or None to do without (as in ENCODERLESS).
    """
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline.from_pretrained(model, dtype=dtype, **without, **hub)
    for name in ("vae", "text_encoder", "unet"):
        if name not in hub:  # what is given stays as it is: its decoder may be learning
            getattr(pipe, name).requires_grad_(False).eval()
    return pipe


def local_folder(model: str, **hub) -> str:
    """Return the folder of a model, after downloading what a pipeline needs of it if it is a name on the Hub."""
    return (
        model
        if Path(model).exists()
        else StableDiffusionPipeline.download(model, safety_checker=None, feature_extractor=None, **hub)
    )


def vae_config(folder: str) -> FrozenDict:
    """Return the configuration of a model's VAE without making one; what the file leaves out has diffusers' default."""
    parameters = inspect.signature(AutoencoderKL.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    return FrozenDict({**defaults, **AutoencoderKL.load_config(folder, subfolder="vae")})


def vae_scale_factor(config: FrozenDict) -> int:
    """Return pixels per latent position and side, from a VAE's configuration."""
    return 2 ** (len(config.block_out_channels) - 1)


def check_stable_diffusion(model: str) -> None:
    """Raise InputError unless `model` looks like a Stable Diffusion 1.x/2.x folder; repository names are left to the Hub."""
    folder = Path(model)
    if not folder.exists():
        if model.count("/") == 1 and not model.startswith((".", "/", "~")):
            return
        raise InputError(f"{model}: no such folder; give a diffusers folder or an owner/name on the Hub")
    index = folder / "model_index.json"
    if not index.exists():
        raise InputError(
            f"{model}: no model_index.json; give the folder that save_pretrained of a Stable Diffusion pipeline wrote"
        )
    parts = json.loads(index.read_text(encoding="utf-8"))
    if "text_encoder_2" in parts:
        raise InputError(
            f"{index}: {parts.get('_class_name')} has two text encoders (SDXL); this script trains SD 1.x and 2.x"
        )
    for part, wanted in STABLE_DIFFUSION_PARTS.items():
        found = parts.get(part, [None, None])[1]
        if found != wanted:
            raise InputError(
                f"{index}: {part} is {found}, expected {wanted}; give a Stable Diffusion 1.x or 2.x folder"
            )
        if not (folder / part).is_dir():
            raise InputError(f"{folder / part}: missing, though model_index.json names it; the download is incomplete")


def check_resolution(resolution: int, vae: FrozenDict, unet: FrozenDict) -> None:
    """Raise InputError unless images of this side halve evenly all the way down the autoencoder and the U-Net."""
    if unet.in_channels != vae.latent_channels:
        raise InputError(
            f"the base's U-Net takes {unet.in_channels} channels, its autoencoder gives {vae.latent_channels}: "
            "an inpainting model; give a plain text-to-image one"
        )
    multiple = vae_scale_factor(vae) * 2 ** (len(unet.block_out_channels) - 1)
    if resolution < multiple or resolution % multiple:
        raise InputError(f"--resolution {resolution}: this base needs a multiple of {multiple}")
