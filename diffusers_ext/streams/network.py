"""A backbone that learns with its mixture, and the pictures that it is shown."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ..data.batches import Samples
from ..embeddings.backbones import Backbone
from ..errors import InputError
from ..randomness import generator

KEPT = 1 << 30  # bytes of prepared pictures that stay in memory
WEIGHTS = "model.safetensors"


class TrainedBackbone(nn.Module):
    """A timm model that learns, as a whole or by LoRA: images (N, 3, H, W) to features (N, D) float32.

    rank: of LoRA's adapters (Hu et al. 2022) on linear layers and 1 x 1 convolutions, drawn by the seed; 0 trains all weights.
    Batch normalisation keeps its running statistics: they would follow the domain that came last, and differ between ranks.
    """

    def __init__(self, model: nn.Module, rank: int = 0, seed: int = 0):
        super().__init__()
        self.model = with_adapters(model, rank, seed) if rank else model.requires_grad_(True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).float()

    def train(self, mode: bool = True) -> "TrainedBackbone":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights, adapters apart, to resume from."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, Path(folder) / WEIGHTS)

    def export(self, folder: str | Path) -> None:
        """Write a timm folder, adapters merged: load_backbone("timm:" + folder) reads it."""
        from timm.models import save_for_hf

        model = copy.deepcopy(self.model).cpu().to(memory_format=torch.contiguous_format)
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        save_for_hf(model, str(folder), safe_serialization=True)


def with_adapters(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """Return the model with LoRA on its linear layers and 1 x 1 convolutions; only the adapters learn."""
    from peft import LoraConfig, get_peft_model

    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1)
    ]
    if not targets:
        raise InputError("--lora_rank: the backbone has no linear layer or 1 x 1 convolution; train all of it with 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


class Pictures:
    """Pictures as the backbone takes them, (3, H, W) float32 by row; prepared once while they fit in a GiB."""

    def __init__(self, backbone: Backbone, files: Sequence[Any]):
        self.backbone, self.files, self.left = backbone, files, KEPT
        self.kept: dict[int, torch.Tensor] = {}

    def __getitem__(self, row: int) -> torch.Tensor:
        if row in self.kept:
            return self.kept[row]
        pixels = self.backbone.preprocess(self.backbone.picture(self.files[row]))
        if self.left >= pixels.nbytes:
            self.left -= pixels.nbytes
            self.kept[row] = pixels
        return pixels


class BalancedPictures(Samples):
    """Pictures of a session and the memory for `loop.train`, each drawn under (seed, session, epoch, index).

    rows, classes and components (N,): first a class is drawn, then one of its components, then a picture of it, all evenly.
    """

    def __init__(self, pictures: Pictures, rows, classes, components, seed: int, session: int):
        self.pictures, self.seed, self.session, self.count = pictures, seed, session, len(rows)
        self.members = [
            (
                label,
                [
                    rows[(classes == label) & (components == component)]
                    for component in np.unique(components[classes == label])
                ],
            )
            for label in np.unique(classes).tolist()
        ]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        draw = generator(self.seed, "balanced pictures", self.session, *key)
        label, components = self.members[draw.integers(len(self.members))]
        rows = components[draw.integers(len(components))]
        return {"key": key, "image": self.pictures[int(rows[draw.integers(len(rows))])], "label": torch.tensor(label)}
