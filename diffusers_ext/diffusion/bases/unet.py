"""What the U-Nets of Stable Diffusion 1.x, 2.x and XL have in common: their ControlNets, sizes, adapters and files.

Shapes: B samples, latents (B, c, h, w).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ControlNetModel, DiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer

from ...errors import InputError
from ...publish.model_files import read_json
from ..check import check_part_weights, check_scheduler
from ..conditioning import Conditioning
from ..paths import REMEDY, scheduler_problem
from .encoders import TEXT, vae_scale_factor
from .unet_checks import check_latents, check_texts, check_unet

# Zhang & Agrawala 2023, released code: three halvings, for an autoencoder of factor 8.
HINT_CHANNELS = (16, 32, 96, 256)


class Residuals(NamedTuple):
    """What a ControlNet adds to a U-Net: down, one tensor for each skip connection from fine to coarse; middle, one."""

    down: list[torch.Tensor]
    middle: torch.Tensor


class UNetFamily:
    """A base whose network is a U-Net; children add their text encoders. Every method is without state."""

    name: str
    pipeline: type[DiffusionPipeline]
    control_pipeline: type[DiffusionPipeline]
    parts: Mapping[str, str]
    load_arguments: Mapping[str, Any]
    tells: str | None  # addition_embed_type of the U-Net: what it is told beside text
    reads_time_ids = False
    obeys_force_upcast = False  # whether diffusers' pipeline decodes in float32 where the VAE's configuration says so
    network = "unet"
    network_class = UNet2DConditionModel
    control_network = ControlNetModel
    # The attention's linear maps, as in diffusers' own LoRA scripts.
    adapter_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def matches(self, parts: Mapping[str, Any]) -> bool:
        """Whether a model_index.json, or a pipeline's components, are of this family."""
        return self.network in parts and ("text_encoder_2" in parts) == ("text_encoder_2" in self.parts)

    def drives(self, network: nn.Module) -> bool:
        """Whether a network is of this family."""
        return isinstance(network, UNet2DConditionModel) and network.config.addition_embed_type == self.tells

    def check(self, folder: Path) -> None:
        """Raise InputError unless U-Net and text encoders of a folder belong together and draw from text alone."""
        check_scheduler(folder, read_json(folder / "model_index.json"), scheduler_problem, REMEDY)
        _check_betas(folder / "scheduler" / "scheduler_config.json")
        config = folder / self.network / "config.json"
        unet = read_json(config)
        check_unet(config, unet, self.tells)
        check_texts(folder, [part for part in self.parts if part.startswith("text_encoder")], config, unet)

    def check_latents(self, folder: str | Path, vae: Mapping[str, Any]) -> None:
        """Raise InputError unless the U-Net of a folder works on the latents of this autoencoder, and on nothing else."""
        check_latents(Path(folder) / self.network / "config.json", vae)

    def check_control(self, folder: Path) -> None:
        """Raise InputError unless the weights of a ControlNet's folder are whole."""
        check_part_weights(folder, self.control_network.__name__, None)

    def told(self, conditioning: Conditioning) -> dict[str, Any]:
        """Return the arguments that U-Net and ControlNet take beside z_t and t."""
        return {"encoder_hidden_states": conditioning.text}

    def predict(
        self,
        network: UNet2DConditionModel,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        residuals: Residuals | None = None,
    ) -> torch.Tensor:
        """Return the network's prediction for z_t (B, c, h, w) at timesteps (B,), with what a ControlNet adds."""
        added: dict[str, Any] = {}
        if residuals is not None:
            added = {
                "down_block_additional_residuals": residuals.down,
                "mid_block_additional_residual": residuals.middle,
            }
        return network(noisy, timesteps, **self.told(conditioning), **added).sample

    def residuals(
        self,
        controlnet: ControlNetModel,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        condition: torch.Tensor,
    ) -> Residuals:
        """Return what a ControlNet adds for conditions (B, C, H, W) in [0, 1]."""
        told = self.told(conditioning)
        return Residuals(*controlnet(noisy, timesteps, **told, controlnet_cond=condition, return_dict=False))

    def new_control(
        self, network: UNet2DConditionModel, vae_factor: int, conditioning_channels: int = 3
    ) -> ControlNetModel:
        """Copy a U-Net's encoder, with a hint network that halves the condition as often as the autoencoder does.

        vae_factor: pixels per latent position and side, a power of two.
        """
        halvings = vae_factor.bit_length() - 1
        channels = (*HINT_CHANNELS, *(HINT_CHANNELS[-1],) * halvings)[: halvings + 1]
        return ControlNetModel.from_unet(
            network, conditioning_embedding_out_channels=channels, conditioning_channels=conditioning_channels
        )

    def control_like(self, network: UNet2DConditionModel, config: Mapping[str, Any]) -> ControlNetModel:
        """Copy a U-Net's encoder, with the hint network that the configuration of another ControlNet has."""
        return ControlNetModel.from_unet(
            network,
            controlnet_conditioning_channel_order=config["controlnet_conditioning_channel_order"],
            conditioning_embedding_out_channels=tuple(config["conditioning_embedding_out_channels"]),
            conditioning_channels=config["conditioning_channels"],
        )

    def guided(self, network: FrozenDict, scale: float) -> bool:
        """Whether a pipeline of this network draws with classifier-free guidance at a guidance scale."""
        return scale > 1 and network.time_cond_proj_dim is None

    def decoder(self, network: UNet2DConditionModel) -> list[nn.Module]:
        """Return the modules behind the ControlNet's residuals, which a training may unlock."""
        return [network.up_blocks, network.conv_norm_out, network.conv_out]

    def latent_channels(self, network: FrozenDict) -> int:
        """The channels of the latents, by the network's configuration."""
        return network.in_channels

    def multiple(self, network: FrozenDict, vae: FrozenDict) -> int:
        """What a picture's sides must be multiples of, to halve evenly down the autoencoder and the U-Net."""
        return vae_scale_factor(vae) * 2 ** (len(network.block_out_channels) - 1)

    def native_side(self, network: FrozenDict, vae: FrozenDict) -> int | None:
        """The side of the pictures that the base was made for, where its configuration says so."""
        size = network.get("sample_size")
        return size * vae_scale_factor(vae) if isinstance(size, int) else None

    def check_resolution(self, resolution: int, network: FrozenDict, vae: FrozenDict) -> None:
        """Raise InputError unless pictures of this side, in pixels, can be encoded and drawn."""
        if network.in_channels != vae.latent_channels:
            raise InputError(
                f"the base's U-Net takes {network.in_channels} channels, its autoencoder gives {vae.latent_channels}: "
                "an inpainting model, or an autoencoder of another kind of model; give a plain text-to-image one"
            )
        multiple = self.multiple(network, vae)
        if resolution < multiple or resolution % multiple:
            raise InputError(f"--resolution {resolution}: this base needs a multiple of {multiple}")

    def embedding_shapes(self, folder: Path) -> dict[str, tuple[int, ...]]:
        """The shapes of one caption's embeddings, by configurations and tokenizer, before any encoder is loaded."""
        tokens = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").model_max_length
        configs = [CLIPTextConfig.from_pretrained(folder, subfolder=part) for part in self.parts if "encoder" in part]
        return {TEXT: (tokens, sum(config.hidden_size for config in configs))}


def without_attention(config: Mapping[str, Any], blocks: int) -> dict[str, Any]:
    """Return the configuration of a ControlNet whose blocks behind the first `blocks` down blocks have no attention."""
    kinds = list(config["down_block_types"])
    kinds[blocks:] = ["DownBlock2D"] * (len(kinds) - blocks)
    return {**config, "down_block_types": kinds, "mid_block_type": "UNetMidBlock2D"}


def _check_betas(path: Path) -> None:
    """Raise InputError where a scheduler's file leaves its betas to diffusers' defaults."""
    config = read_json(path)
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise InputError(
            f"{path}: names no beta_schedule, so what noise the base knows is not known; download it again"
        )
