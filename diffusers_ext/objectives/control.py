"""The ControlNet objective (Zhang & Agrawala 2023, section 3.3)."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from ..encoders import StableDiffusionEncoders
from . import Objective
from .diffusion import Diffusion


def save(objective: "ControlObjective", folder: Path) -> None:
    """Write what learned: the ControlNet into `folder` itself, an unlocked U-Net into its unet/."""
    objective.controlnet.save_pretrained(folder)
    if "unet" in objective.trainable:
        objective.unet.save_pretrained(folder / "unet")


class ControlObjective(Objective):
    """E ‖target − ε_θ(z_t, t, c_text, c_f)‖²: the ControlNet learns, everything else is frozen.

    The frozen U-Net's encoder sees nothing that needs a gradient, so autograd records its decoder only.

    Args:
        only_mid_control: only the middle residual learns; the others' zero convolutions stay zero, in any pipeline.
        unlock_decoder: the U-Net's decoder learns too (the paper's code: sd_locked=False). For data far from the base's.
    """

    def __init__(
        self,
        controlnet: ControlNetModel,
        unet: UNet2DConditionModel,
        encoders: StableDiffusionEncoders,
        diffusion: Diffusion,
        only_mid_control: bool = False,
        unlock_decoder: bool = False,
    ):
        super().__init__()
        self.controlnet, self.encoders, self.diffusion = controlnet, encoders, diffusion
        self.unet = unet.requires_grad_(False)
        self.trainable = {"controlnet": controlnet}
        controlnet.controlnet_down_blocks.requires_grad_(not only_mid_control)
        if unlock_decoder:
            for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out):
                part.requires_grad_(True)
            self.trainable["unet"] = unet

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: as `encode` takes it, and "conditioning_pixel_values" (B, C, H, W) in [0, 1]."""
        latents, text = self.encode(batch)
        noisy, timesteps, target = self.diffusion.diffuse(latents, batch["key"])
        prediction = self.predict(noisy, timesteps, text, batch["conditioning_pixel_values"])
        return {"loss": self.diffusion.loss(prediction, target, timesteps)}

    @torch.no_grad()
    def encode(self, batch: dict) -> tuple[torch.Tensor, dict]:
        """Return latents and c_text, the arguments of `StableDiffusionEncoders.conditioning`; batch: as both take it."""
        return self.encoders.latents(batch, self.diffusion.seed), self.encoders.conditioning(batch)

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, text: dict, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return ε_θ(z_t, t, c_text, c_f), or what the scheduler's prediction type names; text: of `encode`."""
        down, middle = self.controlnet(noisy, timesteps, **text, controlnet_cond=condition, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(noisy, timesteps, **text, **residuals).sample
