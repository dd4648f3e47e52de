"""The ControlNet objective (Zhang & Agrawala 2023, section 3.3)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import nn

from ..diffusion.base import Base
from ..diffusion.conditioning import Conditioning
from ..diffusion.noising import Diffusion
from ..disk import follow_umask
from ..engine.objective import Objective
from .blocks import behind, completed, front
from .lora import has_lora, merged, restore_lora, save_lora

SMALL_PART = """# The small part of a ControlNet: what learned by this checkpoint

`ControlNetModel.from_pretrained` does not load this folder, which holds no whole ControlNet. The run folder above the checkpoint
and its `best/` do hold one. Of this checkpoint, with the base that `options.json` names:

```python
from diffusers import ControlNetModel, {network_class}

{network} = {network_class}.from_pretrained("the base", subfolder="{network}")
controlnet = ControlNetModel.from_unet({network})  # needs diffusers alone; the adapters stay apart
controlnet.load_lora_adapter("this folder", prefix=None, use_safetensors=True)
```

or `diffusers_ext.load_control_lora("this folder", {network})`, which merges them; its `save_pretrained` then writes a folder that
`from_pretrained` loads.
"""


@dataclass(frozen=True)
class Variant:
    """What learns, beside or instead of a whole ControlNet.

    only_mid_control: only the middle residual; the others' zero convolutions stay zero, in any pipeline.
    unlock_decoder: the base's decoder too (the paper's code: sd_locked=False), for data far from the base's.
    blocks: only the first so many down blocks run and learn; see `control.blocks`.
    """

    only_mid_control: bool = False
    unlock_decoder: bool = False
    blocks: int | None = None


def save(objective: "ControlObjective", folder: Path) -> None:
    """Write the ControlNet into `folder` itself, merged where it has adapters; its small part into lora/, an unlocked base's
    network into the folder of its name."""
    if has_lora(objective.controlnet):
        merged(objective.controlnet).save_pretrained(folder)
        save_lora(objective.controlnet, folder / "lora")
    else:
        objective.controlnet.save_pretrained(folder)
    network = objective.base.family.network
    if network in objective.trainable:
        objective.trainable[network].save_pretrained(folder / network)
    follow_umask(folder)


class ControlObjective(Objective):
    """E ‖target − ε_θ(z_t, t, c_text, c_f)‖²: the ControlNet learns, everything else is frozen.

    The base's frozen encoder sees nothing that needs a gradient, so autograd records its decoder only.

    controlnet: with adapters (`control.lora.add_lora`) only these, the hint network and the zero convolutions learn.

    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.control.hint import new_controlnet
    >>> from diffusers_ext.diffusion.base import base_of, load_base
    >>> from diffusers_ext.diffusion.paths import path_of
    >>> pipe = load_base(embedded_model())
    >>> base = base_of(pipe)
    >>> objective = ControlObjective(new_controlnet(base.network, 4), base, Diffusion(path_of(pipe.scheduler), seed=0))
    >>> batch = {'key': [(0, 0)], 'text': ['red circle'], 'pixel_values': torch.zeros(1, 3, 64, 64)}
    >>> objective({**batch, 'conditioning_pixel_values': torch.zeros(1, 3, 64, 64)})['loss'].shape
    torch.Size([])
    """

    def __init__(self, controlnet: ModelMixin, base: Base, diffusion: Diffusion, variant: Variant | None = None):
        super().__init__()
        variant = variant or Variant()
        self.controlnet, self.base, self.diffusion = controlnet, base, diffusion
        base.requires_grad_(False)
        self.trainable = {} if has_lora(controlnet) else {"controlnet": controlnet}
        controlnet.controlnet_down_blocks.requires_grad_(not variant.only_mid_control)
        self.front, self.partial = controlnet, bool(variant.blocks)  # the part that runs
        if variant.blocks:
            behind(controlnet, variant.blocks).requires_grad_(False)
            self.front = front(controlnet, variant.blocks)
        if variant.unlock_decoder:
            for part in base.family.decoder(base.network):
                part.requires_grad_(True)
            self.trainable[base.family.network] = base.network

    def save(self, folder: Path) -> None:
        """Write each trainable module to a folder of its name; of a ControlNet with adapters its small part."""
        super().save(folder)
        if has_lora(self.controlnet):
            save_lora(self.controlnet, folder / "controlnet")
            family = self.base.family
            text = SMALL_PART.format(network=family.network, network_class=family.network_class.__name__)
            (folder / "controlnet" / "README.md").write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> None:
        super().load(folder)
        if has_lora(self.controlnet):
            restore_lora(self.controlnet, folder / "controlnet")

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.base.network.device

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: as `encode` takes it, and "conditioning_pixel_values" (B, C, H, W) in [0, 1]."""
        latents, conditioning = self.encode(batch)
        noisy, timesteps, target = self.diffusion.diffuse(latents, batch["key"])
        prediction = self.predict(noisy, timesteps, conditioning, batch["conditioning_pixel_values"])
        return {"loss": self.diffusion.loss(prediction, target, timesteps)}

    @torch.compiler.disable
    @torch.no_grad()
    def encode(self, batch: dict) -> tuple[torch.Tensor, Conditioning]:
        """Return latents (B, c, h, w) and c_text; batch: as `Encoders.latents` and `Encoders.conditioning` take it."""
        encoders = self.base.encoders
        return encoders.latents(batch, self.diffusion.seed), encoders.conditioning(batch)

    def predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        condition: torch.Tensor,
        front: nn.Module | None = None,
    ) -> torch.Tensor:
        """Return ε_θ(z_t, t, c_text, c_f), or what the base predicts instead of ε.

        front: another ControlNet's part to run instead of the learning one's.
        """
        control = self.front if front is None else front
        residuals = self.base.residuals(control, noisy, timesteps, conditioning, condition)
        if self.partial:
            residuals = completed(residuals, self.controlnet)
        return self.base.predict(noisy, timesteps, conditioning, residuals)
