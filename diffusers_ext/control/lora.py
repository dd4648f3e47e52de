"""LoRA-ControlNet: the copied encoder stays the base's own, low-rank adapters and the control's own parts learn.

The hint network and the zero convolutions, which no base has, learn fully. What learned is one small file,
`pytorch_lora_weights.safetensors`, in the format that diffusers reads, so that either of these rebuilds the ControlNet:

    controlnet = load_control_lora("runs/mine/lora", network)                      # merged, with any base of that family
    controlnet = ControlNetModel.from_unet(network)                                # or diffusers alone, unmerged
    controlnet.load_lora_adapter("runs/mine/lora", prefix=None, use_safetensors=True)
"""

import json
import re
from pathlib import Path

import torch
from diffusers import ControlNetModel, ModelMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from ..diffusion.base import family_of
from ..errors import InputError
from .hint import check_architecture

ADAPTER = "default"  # peft's name for an adapter that has no other
# Every linear map and convolution of the copied encoder but its first, before which nothing of the condition arrives.
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj", "linear_1", "linear_2"),
)
OWN = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")


def add_lora(
    controlnet: ControlNetModel,
    network: ModelMixin,
    rank: int,
    alpha: float | None = None,
    targets: list[str] | None = None,
) -> None:
    """Freeze a new ControlNet's copied weights, in place, and put W + (alpha / rank) · B A over them (Hu et al. 2021, 4.1).

    B starts at zero, A as peft draws it from torch's global generator; adapters are kept in float32. The copies become
    the network's own tensors, in its type: they take no memory of their own.

    Args:
        alpha: default rank, a scale of 1.
        targets: names of the layers to adapt, or the ends of their names after a dot; default TARGETS.

    Raises InputError if targets name no layer of the copied encoder, or one of the control's own.
    """
    own = dict(controlnet.named_parameters())
    for name, parameter in network.named_parameters():
        if name in own:
            owner, _, leaf = name.rpartition(".")
            setattr(controlnet.get_submodule(owner), leaf, parameter)
    layers = rf"(?!{'|'.join(OWN)})(.*\.)?({'|'.join(map(re.escape, targets or TARGETS))})"
    try:
        controlnet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=layers), ADAPTER)
    except ValueError as error:
        raise InputError(f"--lora_target_modules {' '.join(targets or TARGETS)}: {error}") from error
    for name in OWN:
        getattr(controlnet, name).requires_grad_(True)
    cast_training_params(controlnet, torch.float32)


def has_lora(controlnet: ControlNetModel) -> bool:
    return ADAPTER in getattr(controlnet, "peft_config", {})


def save_lora(controlnet: ControlNetModel, folder: Path) -> None:
    """Write what learned, adapters, hint network and zero convolutions, and the ControlNet's config.json."""
    controlnet.save_config(folder)
    about = controlnet.peft_config[ADAPTER].to_dict()
    about = {name: sorted(value) if isinstance(value, set) else value for name, value in about.items()}
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(about, indent=2, sort_keys=True)}
    tensors = {name: tensor.contiguous() for name, tensor in _learned(controlnet).items()}
    save_file(tensors, folder / LORA_WEIGHT_NAME_SAFE, metadata)


@torch.no_grad()
def restore_lora(controlnet: ControlNetModel, folder: Path) -> None:
    """Read back what `save_lora` wrote, in place and strictly."""
    saved, own = load_file(folder / LORA_WEIGHT_NAME_SAFE), _learned(controlnet)
    if saved.keys() != own.keys():
        differ = sorted(saved.keys() ^ own.keys())
        raise InputError(f"{folder}: made with other --lora_rank or --lora_target_modules; {differ[0]} is not in both")
    for name, tensor in own.items():
        tensor.copy_(saved[name])


@torch.no_grad()
def merged(controlnet: ControlNetModel) -> ControlNetModel:
    """Return a plain ControlNet with the adapters' products added to the weights: float32, on the CPU."""
    weights = {
        name.replace(".base_layer.", "."): tensor.to("cpu", torch.float32, copy=True)
        for name, tensor in controlnet.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in controlnet.named_modules():
        if isinstance(layer, BaseTunerLayer):
            weights[f"{name}.weight"] += layer.get_delta_weight(ADAPTER).cpu()
    with torch.device("meta"):
        whole = ControlNetModel.from_config(controlnet.config)
    whole.load_state_dict(weights, assign=True)
    return whole


def load_control_lora(
    model: str | Path,
    network: ModelMixin,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool | None = None,
) -> ControlNetModel:
    """Rebuild a full ControlNet from its small part and a base, which may be another one of the same architecture.

    Args:
        model: a run's lora/ folder, or a name on the Hub.
        network: the base's network, such as its U-Net; it is not changed.
        subfolder, revision, token, cache_dir, local_files_only: of a name on the Hub, as diffusers has them.

    Returns the merged ControlNet in the network's type, on its device. Raises InputError if the two do not fit.
    """
    chosen = {"subfolder": subfolder, "revision": revision, "token": token, "cache_dir": cache_dir}
    chosen["local_files_only"] = local_files_only
    hub = {name: value for name, value in chosen.items() if value is not None}
    config = ControlNetModel.load_config(model, **hub)
    check_architecture(config, network.config)
    controlnet = family_of(network).control_like(network, config)
    controlnet.load_lora_adapter(model, prefix=None, use_safetensors=True, adapter_name=ADAPTER, **hub)
    return merged(controlnet).to(network.device, network.dtype).eval()


def _learned(controlnet: ControlNetModel) -> dict[str, torch.Tensor]:
    """The tensors that learn, by the names of the saved file."""
    own = {name: parameter.detach() for name, parameter in controlnet.named_parameters() if name.startswith(OWN)}
    return {**get_peft_model_state_dict(controlnet, adapter_name=ADAPTER), **own}
