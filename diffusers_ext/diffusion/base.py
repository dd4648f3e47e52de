"""The frozen base of a training: a Stable Diffusion 1.x, 2.x or XL folder, its VAE or another, and their types."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from huggingface_hub import snapshot_download
from transformers import CLIPTokenizer

from ..engine.provenance import Source, digest_of_model, digest_of_values
from ..errors import InputError
from ..publish.model_files import check_weights, variants_of
from .check import check_channels, check_stable_diffusion, check_vae
from .encoders import (
    StableDiffusionEncoders,
    cut_captions,
    encoders_of,
    is_sdxl,
    load_stable_diffusion,
    load_tokenizer,
    parts_of,
    vae_config,
)


class FullPrecisionAutoencoderKL(AutoencoderKL):
    """An autoencoder that computes in its weights' type under autocast too: SDXL's overflows in float16."""

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


@dataclass(frozen=True)
class BaseModel:
    """Where a base's weights lie and in which types they are kept; and a tokenizer to use instead of its own.

    dtype: of U-Net, text encoders and VAE. full_precision_vae: the VAE alone is kept, and computes, in float32.
    """

    folder: str
    vae_folder: Path
    dtype: torch.dtype
    full_precision_vae: bool
    variant: str | None = None
    tokenizer: CLIPTokenizer | None = None

    @classmethod
    def find(
        cls,
        model: str,
        other_vae: str | None = None,
        forward: torch.dtype = torch.float32,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        tokenizer_name: str | None = None,
    ) -> "BaseModel":
        """Download what is a name on the Hub, and choose the types.

        forward: the type of the forward pass; dtype: that of the frozen weights, by default the same. As in diffusers'
        pipelines, SDXL's VAE does not follow float16 unless its configuration says force_upcast false.

        Raises InputError if `model` is not a Stable Diffusion 1.x, 2.x or XL base, or the VAE not an AutoencoderKL.
        """
        folder = local_folder(model, revision=revision, variant=variant)
        check_stable_diffusion(folder, variant)
        vae_folder = local_vae(other_vae) if other_vae else Path(folder) / "vae"
        if other_vae:
            check_vae(str(vae_folder))
            check_weights(vae_folder)
        check_channels(folder, vae_config(vae_folder))
        upcast = is_sdxl(folder) and vae_config(vae_folder).force_upcast and forward == torch.float16
        tokenizer = load_tokenizer(tokenizer_name, folder) if tokenizer_name else None
        return cls(folder, vae_folder, dtype or forward, upcast, variant, tokenizer)

    @functools.cached_property
    def vae(self) -> FrozenDict:
        """The VAE's configuration."""
        return vae_config(self.vae_folder)

    @property
    def vae_dtype(self) -> torch.dtype:
        """The type that the VAE's weights are kept in, and its moments in a cache."""
        return torch.float32 if self.full_precision_vae else self.dtype

    def source(self, options: Any) -> Source:
        """What a training comes from; options: its own, which name the base."""
        parts = {*parts_of(self.folder), "scheduler"}
        digests = [digest_of_model(self.folder, parts, self.variant), digest_of_model(self.vae_folder)]
        other = getattr(options, "tokenizer_name", None)
        named_by = ("pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "revision", "variant")
        return Source((*named_by, "tokenizer_name"), digest_of_values(*digests, other and digest_of_model(other)))

    def load(self, **parts: Any) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """Load the pipeline, frozen; parts: those to use as they are, by their names in it, or None to do without."""
        own = self.vae_folder == Path(self.folder) / "vae"
        if "vae" not in parts and (self.full_precision_vae or not own):
            kind = FullPrecisionAutoencoderKL if self.full_precision_vae else AutoencoderKL
            variant = self.variant if own and self.variant in variants_of(self.vae_folder) else None
            vae = kind.from_pretrained(self.vae_folder, torch_dtype=self.vae_dtype, variant=variant)
            parts["vae"] = vae.requires_grad_(False).eval()
        if self.tokenizer:
            parts.setdefault("tokenizer", self.tokenizer)
        return load_stable_diffusion(self.folder, self.dtype, variant=self.variant, **parts)

    def cut_captions(self, captions: Sequence[str]) -> str | None:
        """Say how many captions this base's text encoder does not read to the end; see `encoders.cut_captions`."""
        return cut_captions(
            self.tokenizer or CLIPTokenizer.from_pretrained(self.folder, subfolder="tokenizer"), captions
        )

    def load_without_encoders(self) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """Load the pipeline without what makes latents and embeddings: for runs to which a cache brings them."""
        return self.load(**dict.fromkeys(name for name in parts_of(self.folder) if name != "unet"))

    def encoders(self, pipe: StableDiffusionPipeline | StableDiffusionXLPipeline) -> StableDiffusionEncoders:
        """Return the encoders of a pipeline that was loaded here."""
        return encoders_of(pipe, self.vae)


def local_folder(model: str, revision: str | None = None, variant: str | None = None) -> str:
    """Return the folder of a model, after downloading what a pipeline needs of it if it is a name on the Hub.

    Raises InputError if it cannot be downloaded.
    """
    if Path(model).exists():
        return model
    with download_errors(model):
        return str(
            DiffusionPipeline.download(
                model, safety_checker=None, feature_extractor=None, revision=revision, variant=variant
            )
        )


def local_vae(model: str) -> Path:
    """Return the folder of an autoencoder, downloaded if it is a name on the Hub."""
    if Path(model).exists():
        return Path(model)
    with download_errors(model):
        return Path(snapshot_download(model, allow_patterns=["config.json", "diffusion_pytorch_model*.safetensors*"]))


@contextmanager
def download_errors(model: str) -> Iterator[None]:
    """Turn what a download raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, AttributeError) as error:  # huggingface_hub's errors are OSErrors or ValueErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{model}: cannot be downloaded ({reason}); check the name, the network and the access, or give a folder. A"
            " repository with files of one variant only needs --variant"
        ) from error
