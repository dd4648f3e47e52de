"""Where a base's weights lie: a folder or a name on the Hub, its VAE or another, and the types they are kept in."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import snapshot_download
from torch import nn
from transformers import CLIPTokenizer

from ..engine.provenance import Source, digest_of_model, digest_of_values
from ..errors import InputError
from ..publish.model_files import check_weights, variants_of
from .base import Base, Family, base_of, check_base, far_above_native, find, load_base
from .bases.clip import cut_captions
from .bases.encoders import Encoders, FullPrecisionAutoencoderKL, vae_config, vae_scale_factor
from .check import check_vae


@dataclass(frozen=True)
class BaseFiles:
    """Where a base's weights lie and in which types they are kept; and a tokenizer to use instead of its own.

    dtype: of network, text encoders and VAE. full_precision_vae: the VAE alone is kept, and computes, in float32.

    >>> from diffusers_ext import embedded_model
    >>> files = BaseFiles.find(embedded_model())
    >>> files.family.name, files.vae_dtype
    ('Stable Diffusion 1.x or 2.x', torch.float32)
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
        *,
        forward: torch.dtype = torch.float32,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        tokenizer_name: str | None = None,
    ) -> "BaseFiles":
        """Download what is a name on the Hub, check it, and choose the types.

        forward: the type of the forward pass; dtype: that of the frozen weights, by default the same. As in diffusers'
        pipelines, the VAE of some families does not follow float16 unless its configuration says force_upcast false.

        Raises InputError if `model` is not a base that is known, or the VAE not an AutoencoderKL.
        """
        folder = local_folder(model, revision=revision, variant=variant)
        check_base(folder, variant)
        family = find(folder)
        vae_folder = local_vae(other_vae) if other_vae else Path(folder) / "vae"
        if other_vae:
            check_vae(str(vae_folder))
            check_weights(vae_folder)
        vae = vae_config(vae_folder)
        family.check_latents(folder, vae)
        upcast = family.obeys_force_upcast and vae.force_upcast and forward == torch.float16
        tokenizer = family.load_tokenizer(tokenizer_name, folder) if tokenizer_name else None
        return cls(folder, vae_folder, dtype or forward, upcast, variant, tokenizer)

    @functools.cached_property
    def family(self) -> Family:
        """The family of the base."""
        return find(self.folder)

    @functools.cached_property
    def vae(self) -> FrozenDict:
        """The VAE's configuration."""
        return vae_config(self.vae_folder)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position and side."""
        return vae_scale_factor(self.vae)

    @property
    def vae_dtype(self) -> torch.dtype:
        """The type that the VAE's weights are kept in, and its moments in a cache."""
        return torch.float32 if self.full_precision_vae else self.dtype

    def source(self, tokenizer_name: str | None = None) -> Source:
        """Return the digest of what a training comes from, and the options that name it."""
        parts = {*self.family.parts, "scheduler"}
        digests = [digest_of_model(self.folder, parts, self.variant), digest_of_model(self.vae_folder)]
        named_by = ("pretrained_model_name_or_path", "pretrained_vae_model_name_or_path", "revision", "variant")
        tokenizer = tokenizer_name and digest_of_model(tokenizer_name)
        return Source((*named_by, "tokenizer_name"), digest_of_values(*digests, tokenizer))

    def load(self, **parts: Any) -> Any:
        """Load the pipeline, frozen; parts: those to use as they are, by their names in it, or None to do without."""
        own = self.vae_folder == Path(self.folder) / "vae"
        if "vae" not in parts and (self.full_precision_vae or not own):
            kind = FullPrecisionAutoencoderKL if self.full_precision_vae else AutoencoderKL
            variant = self.variant if own and self.variant in variants_of(self.vae_folder) else None
            vae = kind.from_pretrained(self.vae_folder, torch_dtype=self.vae_dtype, variant=variant)
            parts["vae"] = vae.requires_grad_(False).eval()
        if self.tokenizer:
            parts.setdefault("tokenizer", self.tokenizer)
        return load_base(self.folder, self.dtype, variant=self.variant, **parts)

    def load_without(self, *kinds: str) -> Any:
        """Load the pipeline without the parts whose names begin so, such as "text_encoder" and "tokenizer"."""
        return self.load(**dict.fromkeys(name for name in self.family.parts if name.startswith(kinds)))

    def load_without_encoders(self) -> Any:
        """Load the pipeline without what makes latents and embeddings: for runs to which a cache brings them."""
        return self.load(**dict.fromkeys(name for name in self.family.parts if name != self.family.network))

    def load_encoders(self, *, vae: bool = True) -> Encoders:
        """Load what makes latents and embeddings, without the network; vae=False: embeddings alone."""
        without = {self.family.network: None, **({} if vae else {"vae": None})}
        return self.family.encoders(self.load(**without), self.vae)

    def load_network(self) -> nn.Module:
        """Load the network alone, in float32: weights that were never rounded to half precision."""
        name = self.family.network
        variant = self.variant if self.variant in variants_of(Path(self.folder) / name) else None
        return self.family.network_class.from_pretrained(self.folder, subfolder=name, variant=variant)

    def base(self, pipe: Any) -> Base:
        """Return the base that a pipeline holds which was loaded here."""
        return base_of(pipe, self.vae)

    def cut_captions(self, captions: Sequence[str]) -> str | None:
        """Return a sentence on captions that this base's text encoder does not read to the end; see `clip.cut_captions`."""
        own = self.tokenizer or CLIPTokenizer.from_pretrained(self.folder, subfolder="tokenizer")
        return cut_captions(own, captions)

    def check_resolution(self, resolution: int, network: FrozenDict) -> str | None:
        """Return a warning for pictures far larger than the base was made for; network: its configuration.

        Raises InputError for a resolution, in pixels, that cannot be encoded and drawn.
        """
        self.family.check_resolution(resolution, network, self.vae)
        return far_above_native(resolution, self.family.native_side(network, self.vae))


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
