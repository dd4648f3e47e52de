"""The seam that lets families of bases in: a base as the rest of this package sees it, whatever its family.

    family = find("models/stable-diffusion-v1-5")     # or InputError, naming what was found
    pipe = load_base("models/stable-diffusion-v1-5")
    base = base_of(pipe)
    z = base.encoders.latents(batch, seed)
    prediction = base.predict(z_t, t, base.encoders.conditioning(batch))

Nothing outside `diffusion/bases/` knows a family's name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..publish.model_files import read_json
from . import check
from .bases import FAMILIES
from .bases.encoders import Encoders, vae_config
from .conditioning import Conditioning


class Family(Protocol):
    """What a family of bases knows. Its object has no state; `bases/` holds one for each family."""

    name: str  # as messages and cards have it
    network: str  # the part that predicts, by its name in pipelines and folders
    network_class: Any
    parts: Mapping[str, str]  # parts of a folder that a training needs, and their classes
    pipeline: type[DiffusionPipeline]  # that a user loads it with
    control_pipeline: type[DiffusionPipeline]
    control_network: Any
    load_arguments: Mapping[str, Any]  # of the pipeline's from_pretrained: what a training does without
    adapter_targets: tuple[str, ...]  # layers that low-rank adapters go to
    reads_time_ids: bool
    obeys_force_upcast: bool  # whether the pipeline decodes in float32 where the VAE's configuration says so

    def matches(self, parts: Mapping[str, Any]) -> bool:
        """Whether a model_index.json, or a pipeline's components, are of this family."""
        ...

    def drives(self, network: nn.Module) -> bool:
        """Whether a network is of this family."""
        ...

    def check(self, folder: Path) -> None:
        """Raise InputError unless network, text encoders and scheduler of a folder belong together and draw from text alone."""
        ...

    def check_latents(self, folder: str | Path, vae: Mapping[str, Any]) -> None:
        """Raise InputError unless the network of a folder works on the latents of this autoencoder."""
        ...

    def check_control(self, folder: Path) -> None:
        """Raise InputError unless the weights of a ControlNet's folder are whole."""
        ...

    def check_resolution(self, resolution: int, network: FrozenDict, vae: FrozenDict) -> None:
        """Raise InputError unless pictures of this side, in pixels, can be encoded and drawn."""
        ...

    def native_side(self, network: FrozenDict, vae: FrozenDict) -> int | None:
        """The side in pixels that the base was made for, where its configuration says so."""
        ...

    def latent_channels(self, network: FrozenDict) -> int:
        """The channels of the latents, by the network's configuration."""
        ...

    def embedding_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        """The shapes of one caption's embeddings, by name, before any encoder is loaded."""
        ...

    def load_tokenizer(self, name: str, folder: str | Path) -> PreTrainedTokenizerBase:
        """Return another tokenizer than the base's own; InputError if it does not fit."""
        ...

    def encoders(self, pipe: Any, vae_config: FrozenDict | None = None) -> Encoders:
        """Return a pipeline's encoders; vae_config stands for its VAE's where it was loaded without one."""
        ...

    def predict(
        self,
        network: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        residuals: Any | None = None,
    ) -> torch.Tensor:
        """Return the network's prediction for z_t (B, c, h, w) at timesteps (B,), with what a ControlNet adds."""
        ...

    def residuals(
        self,
        controlnet: Any,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        condition: torch.Tensor,
    ) -> Any:
        """Return what a ControlNet adds for conditions (B, C, H, W) in [0, 1], as `predict` takes it."""
        ...

    def new_control(self, network: Any, vae_factor: int, conditioning_channels: int = 3) -> Any:
        """Return a new ControlNet of a network, which adds zeros; its hint network has PyTorch's initialisation."""
        ...

    def control_like(self, network: Any, config: Mapping[str, Any]) -> Any:
        """Return a new ControlNet of a network, with the hint network of another ControlNet's configuration."""
        ...

    def guided(self, network: FrozenDict, scale: float) -> bool:
        """Whether a pipeline of this network draws with classifier-free guidance at a guidance scale."""
        ...

    def decoder(self, network: Any) -> list[nn.Module]:
        """Return the modules behind the ControlNet's residuals, which a training may unlock."""
        ...


class Base(nn.Module):
    """A loaded base: its network, and what makes latents and conditioning for it."""

    def __init__(self, family: Family, network: nn.Module, encoders: Encoders):
        super().__init__()
        self.family, self.network, self.encoders = family, network, encoders

    def predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        residuals: Any | None = None,
        network: nn.Module | None = None,
    ) -> torch.Tensor:
        """Return the prediction for z_t (B, c, h, w) at timesteps (B,); network: another than the base's own."""
        return self.family.predict(network or self.network, noisy, timesteps, conditioning, residuals)

    def residuals(
        self,
        controlnet: nn.Module,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        condition: torch.Tensor,
    ) -> Any:
        """Return what a ControlNet adds for conditions (B, C, H, W) in [0, 1], as `predict` takes it."""
        return self.family.residuals(controlnet, noisy, timesteps, conditioning, condition)

    @property
    def latent_channels(self) -> int:
        """The channels of the latents."""
        return self.family.latent_channels(self.network.config)


def base_of(pipe: DiffusionPipeline, vae_config: FrozenDict | None = None) -> Base:
    """Return the base that a pipeline holds; vae_config stands for its VAE's where it was loaded without one.

    >>> from diffusers_ext import embedded_model
    >>> base_of(load_base(embedded_model())).latent_channels
    4
    """
    family = _only(f"this {type(pipe).__name__}", dict(pipe.components))
    return Base(family, getattr(pipe, family.network), family.encoders(pipe, vae_config))


def family_of(network: nn.Module) -> Family:
    """Return the family of a network. Raises InputError for one of no family that is known.

    >>> from diffusers_ext import embedded_model
    >>> family_of(load_base(embedded_model()).unet).network
    'unet'
    """
    for family in FAMILIES:
        if family.drives(network):
            return family
    raise InputError(f"{type(network).__name__}: not the network of a base that is known: {_known()}")


def find(folder: str | Path) -> Family:
    """Return the family of a folder, by its model_index.json. Raises InputError that names what was found instead.

    >>> from diffusers_ext import embedded_model
    >>> find(embedded_model()).name
    'Stable Diffusion 1.x or 2.x'
    """
    index = check.read_index(Path(folder))
    return _only(f"{Path(folder) / 'model_index.json'}: this {index.get('_class_name')}", index)


def check_base(model: str, variant: str | None = None) -> None:
    """Raise InputError unless `model` is the whole folder of a base that is known; Hub names are left to the Hub.

    variant: of its weight files, such as fp16.

    >>> from diffusers_ext import embedded_model
    >>> check_base(embedded_model())
    """
    folder = Path(model)
    if not check.is_folder(model):
        return
    index, family = check.read_index(folder), find(folder)
    check.check_parts(folder, index, family.parts, f"give a base of {_known()}")
    family.check(folder)
    check.check_vae(str(folder / "vae"))
    family.check_latents(folder, vae_config(folder / "vae"))
    if variant:
        check.check_variant(folder, family.parts, variant)
    for part, kind in family.parts.items():
        if not part.startswith("tokenizer"):
            check.check_part_weights(folder / part, kind, variant)


def check_controlnet(model: str) -> None:
    """Raise InputError unless `model` is the folder of a whole ControlNet; Hub names are left to the Hub."""
    folder = Path(model)
    if not check.is_folder(model):
        return
    if not folder.is_dir():
        raise InputError(
            f"{folder}: one file; give the folder of a ControlNet in diffusers' format, with its config.json"
        )
    name = read_json(folder / "config.json").get("_class_name")
    kinds = {family.control_network.__name__: family for family in FAMILIES}
    if name not in kinds:
        raise InputError(f"{folder / 'config.json'}: of a {name}, expected {' or '.join(kinds)}")
    kinds[name].check_control(folder)


def load_base(folder: str | Path, dtype: torch.dtype = torch.float32, variant: str | None = None, **parts: Any) -> Any:
    """Load a base's pipeline, frozen, without what a training does not need, such as a safety checker.

    variant: of its weight files. parts: those to use as they are, by their names in the pipeline, or None to do without.

    >>> from diffusers_ext import embedded_model
    >>> pipe = load_base(embedded_model(), vae=None)
    >>> pipe.vae, any(weight.requires_grad for weight in pipe.unet.parameters())
    (None, False)
    """
    family = find(folder)
    pipe = family.pipeline.from_pretrained(folder, dtype=dtype, variant=variant, **family.load_arguments, **parts)
    for name, part in pipe.components.items():
        if name not in parts and isinstance(
            part, nn.Module
        ):  # a given part stays as it is: its decoder may be learning
            part.requires_grad_(False).eval()
    return pipe


def far_above_native(resolution: int, native: int | None) -> str | None:
    """Return a warning where pictures are more than twice as long as those that the base was made for, else None.

    >>> far_above_native(512, 512)
    >>> far_above_native(2048, 512)[:58]
    'warning: --resolution 2048: the base was made for 512, so '
    """
    if native is None or resolution <= 2 * native:
        return None
    times = round((resolution / native) ** 2)
    return (
        f"warning: --resolution {resolution}: the base was made for {native}, so a picture has {times} times its pixels, "
        f"takes at least {times} times as long and comes out worse; give --resolution {native}, or another base"
    )


def _only(what: str, parts: Mapping[str, Any]) -> Family:
    """Return the family of which these parts are."""
    for family in FAMILIES:
        if family.matches(parts):
            return family
    raise InputError(f"{what} has none of the parts {', '.join(_networks())}, so it is not a base of {_known()}")


def _known() -> str:
    return ", ".join(family.name for family in FAMILIES)


def _networks() -> list[str]:
    return list(dict.fromkeys(family.network for family in FAMILIES))
