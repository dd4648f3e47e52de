"""The ControlNet objective (Zhang & Agrawala 2023, section 3.3)."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from ..diffusion.encoders import StableDiffusionEncoders
from ..diffusion.noising import Diffusion
from ..disk import follow_umask
from ..engine.objective import Objective
from .blocks import behind, front
from .lora import has_lora, merged, restore_lora, save_lora

SMALL_PART = """# The small part of a ControlNet: what learned by this checkpoint

`ControlNetModel.from_pretrained` does not load this folder, which holds no whole ControlNet. The run folder above the checkpoint
and its `best/` do hold one. Of this checkpoint, with the base that `options.json` names:

```python
from diffusers import ControlNetModel, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("the base", subfolder="unet")
controlnet = ControlNetModel.from_unet(unet)  # needs diffusers alone; the adapters stay apart
controlnet.load_lora_adapter("this folder", prefix=None, use_safetensors=True)
```

or `diffusers_ext.load_control_lora("this folder", unet)`, which merges them; its `save_pretrained` then writes a folder that
`from_pretrained` loads.
"""


def save(objective: "ControlObjective", folder: Path) -> None:
    """Write the ControlNet into `folder` itself, merged where it has adapters; its small part into lora/, an unlocked U-Net into unet/."""
    if has_lora(objective.controlnet):
        merged(objective.controlnet).save_pretrained(folder)
        save_lora(objective.controlnet, folder / "lora")
    else:
        objective.controlnet.save_pretrained(folder)
    if "unet" in objective.trainable:
        objective.unet.save_pretrained(folder / "unet")
    follow_umask(folder)


class ControlObjective(Objective):
    """E ‖target − ε_θ(z_t, t, c_text, c_f)‖²: the ControlNet learns, everything else is frozen.

    The frozen U-Net's encoder sees nothing that needs a gradient, so autograd records its decoder only.

    Args:
        controlnet: with adapters (`control.lora.add_lora`) only these, the hint network and the zero convolutions learn.
        only_mid_control: only the middle residual learns; the others' zero convolutions stay zero, in any pipeline.
        unlock_decoder: the U-Net's decoder learns too (the paper's code: sd_locked=False). For data far from the base's.
        blocks: only the first so many down blocks run and learn; see `control.blocks`.
    """

    def __init__(
        self,
        controlnet: ControlNetModel,
        unet: UNet2DConditionModel,
        encoders: StableDiffusionEncoders,
        diffusion: Diffusion,
        only_mid_control: bool = False,
        unlock_decoder: bool = False,
        blocks: int | None = None,
    ):
        super().__init__()
        self.controlnet, self.encoders, self.diffusion = controlnet, encoders, diffusion
        self.unet = unet.requires_grad_(False)
        self.trainable = {} if has_lora(controlnet) else {"controlnet": controlnet}
        controlnet.controlnet_down_blocks.requires_grad_(not only_mid_control)
        self.front, self.partial = controlnet, bool(blocks)  # the part that runs
        if blocks:
            behind(controlnet, blocks).requires_grad_(False)
            self.front = front(controlnet, blocks)
        if unlock_decoder:
            for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out):
                part.requires_grad_(True)
            self.trainable["unet"] = unet

    def save(self, folder: Path) -> None:
        """Write each trainable module to a folder of its name; of a ControlNet with adapters its small part."""
        super().save(folder)
        if has_lora(self.controlnet):
            save_lora(self.controlnet, folder / "controlnet")
            (folder / "controlnet" / "README.md").write_text(SMALL_PART, encoding="utf-8")

    def load(self, folder: Path) -> None:
        super().load(folder)
        if has_lora(self.controlnet):
            restore_lora(self.controlnet, folder / "controlnet")

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: as `encode` takes it, and "conditioning_pixel_values" (B, C, H, W) in [0, 1]."""
        latents, text = self.encode(batch)
        noisy, timesteps, target = self.diffusion.diffuse(latents, batch["key"])
        prediction = self.predict(noisy, timesteps, text, batch["conditioning_pixel_values"])
        return {"loss": self.diffusion.loss(prediction, target, timesteps)}

    @torch.compiler.disable
    @torch.no_grad()
    def encode(self, batch: dict) -> tuple[torch.Tensor, dict]:
        """Return latents and c_text, the arguments of `StableDiffusionEncoders.conditioning`; batch: as both take it."""
        return self.encoders.latents(batch, self.diffusion.seed), self.encoders.conditioning(batch)

    def predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        text: dict,
        condition: torch.Tensor,
        front: nn.Module | None = None,
    ) -> torch.Tensor:
        """Return ε_θ(z_t, t, c_text, c_f), or what the scheduler's prediction type names; text: of `encode`.

        front: another ControlNet's part to run instead of the learning one's.
        """
        control = self.front if front is None else front
        down, middle = control(noisy, timesteps, **text, controlnet_cond=condition, return_dict=False)
        if self.partial:
            nothing = noisy.new_zeros(())
            missing = len(self.controlnet.controlnet_down_blocks) - len(down)
            down, middle = [*down, *[nothing] * missing], nothing
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(noisy, timesteps, **text, **residuals).sample
