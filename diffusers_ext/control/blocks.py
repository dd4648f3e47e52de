"""A ControlNet of the first N down blocks: smaller and cheaper, and still a plain `ControlNetModel` that pipelines load.

A pipeline expects one residual per skip connection of the U-Net, so the blocks behind the N-th cannot be missing. They
have no attention there and weights of zero, and their zero convolutions stay zero: residuals of exactly 0.
Training neither runs nor changes them. `benchmarks/control_variants.py` counts: for SD 1.5 and N = 2 the file holds 226M
weights instead of 361M, of which 52M learn; for SDXL 162M instead of 1,246M, of which 70M learn.
"""

import torch
from diffusers import ControlNetModel
from torch import nn

from ..diffusion.bases.unet import Residuals, without_attention
from ..errors import InputError


@torch.no_grad()
def cut(controlnet: ControlNetModel, blocks: int) -> ControlNetModel:
    """Return a ControlNet with the weights of the first `blocks` down blocks and what lies before them, zeros behind.

    Raises InputError unless 1 <= blocks <= the number of down blocks.

    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.control.hint import new_controlnet
    >>> from diffusers_ext.diffusion.base import load_base
    >>> controlnet = new_controlnet(load_base(embedded_model()).unet, vae_factor=4)
    >>> cut(controlnet, 1).num_parameters() < controlnet.num_parameters()
    True
    """
    check_blocks(controlnet, blocks)
    short = ControlNetModel.from_config(without_attention(controlnet.config, blocks))
    for parameter in behind(short, blocks).parameters():
        parameter.zero_()
    weights = controlnet.state_dict()
    short.load_state_dict({name: weights[name] for name in front(short, blocks).state_dict()}, strict=False)
    return short


def check_blocks(controlnet: ControlNetModel, blocks: int) -> None:
    """Raise InputError unless the ControlNet has so many down blocks."""
    most = len(controlnet.down_blocks)
    if not 1 <= blocks <= most:
        raise InputError(f"--controlnet_blocks {blocks}: this base has 1 to {most} down blocks")


def check_unused(controlnet: ControlNetModel, blocks: int) -> None:
    """Raise InputError if a ControlNet that is given uses a block behind the first `blocks`."""
    check_blocks(controlnet, blocks)
    if any(parameter.any() for parameter in nn.ModuleList(_connections(controlnet, blocks)).parameters()):
        raise InputError(
            f"--controlnet_blocks {blocks}: the ControlNet that is given has learned to use later blocks too; "
            "leave one of the two out"
        )


def front(controlnet: ControlNetModel, blocks: int) -> ControlNetModel:
    """Return the same network, module by module, that ends with the first `blocks` down blocks.

    It gives their residuals only; in place of the middle's it gives the last block's output.
    """
    with torch.device("meta"):
        view = ControlNetModel.from_config(controlnet.config)
    for name, module in controlnet.named_children():
        setattr(view, name, module)
    view.down_blocks = controlnet.down_blocks[:blocks]
    view.controlnet_down_blocks = controlnet.controlnet_down_blocks[: _connected(controlnet, blocks)]
    view.mid_block, view.controlnet_mid_block = None, nn.Identity()
    return view


def completed(residuals: Residuals, controlnet: ControlNetModel) -> Residuals:
    """Return the residuals of a `front` with zeros for what its whole ControlNet would add behind it."""
    nothing = residuals.middle.new_zeros(())
    missing = len(controlnet.controlnet_down_blocks) - len(residuals.down)
    return Residuals([*residuals.down, *[nothing] * missing], nothing)


def behind(controlnet: ControlNetModel, blocks: int) -> nn.ModuleList:
    """Return what `front` leaves out: later down blocks, the middle, and their zero convolutions."""
    return nn.ModuleList([*controlnet.down_blocks[blocks:], controlnet.mid_block, *_connections(controlnet, blocks)])


def _connections(controlnet: ControlNetModel, blocks: int) -> list[nn.Module]:
    later = controlnet.controlnet_down_blocks[_connected(controlnet, blocks) :]
    return [*later, controlnet.controlnet_mid_block]


def _connected(controlnet: ControlNetModel, blocks: int) -> int:
    """The number of connections from the first convolution and the first `blocks` down blocks."""
    kept = controlnet.down_blocks[:blocks]
    return 1 + sum(len(block.resnets) + (block.downsamplers is not None) for block in kept)
