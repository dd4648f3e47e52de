"""The ControlNet objective (Zhang & Agrawala 2023, section 3.3)."""

import torch
from diffusers import ControlNetModel, SchedulerMixin, UNet2DConditionModel
from torch.nn import functional as F

from ..encoders import StableDiffusionEncoders
from . import Objective
from .diffusion import diffuse


class ControlObjective(Objective):
    """E ‖target − ε_θ(z_t, t, c_text, c_f)‖²: the ControlNet learns, everything else is frozen.

    The frozen U-Net's encoder sees nothing that needs a gradient, so autograd records its decoder only.
    """

    def __init__(
        self,
        controlnet: ControlNetModel,
        unet: UNet2DConditionModel,
        encoders: StableDiffusionEncoders,
        scheduler: SchedulerMixin,
        seed: int,
    ):
        super().__init__()
        self.controlnet, self.encoders, self.scheduler, self.seed = controlnet, encoders, scheduler, seed
        self.unet = unet.requires_grad_(False)
        self.trainable = {"controlnet": controlnet}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: as `StableDiffusionEncoders.latents` and `text` take it, and "conditioning_pixel_values" (B, C, H, W) in [0, 1]."""
        latents = self.encoders.latents(batch, self.seed)
        with torch.no_grad():
            text = self.encoders.text(batch)
        noisy, timesteps, target = diffuse(self.scheduler, latents, batch["key"], self.seed)
        condition = batch["conditioning_pixel_values"]
        down, middle = self.controlnet(noisy, timesteps, text, controlnet_cond=condition, return_dict=False)
        prediction = self.unet(
            noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return {"loss": F.mse_loss(prediction.float(), target.float())}
