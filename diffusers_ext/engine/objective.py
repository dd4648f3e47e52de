"""One module per training objective: model and loss together, `forward(batch) -> {"loss": ..., parts}`."""

from pathlib import Path

from huggingface_hub import load_torch_model
from torch import nn

from ..disk import follow_umask

WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors", "model{suffix}.safetensors"  # one file, or suffixed shards


class Objective(nn.Module):
    """What `loop.train` drives: `forward(batch) -> {"loss": scalar, ...}`, other entries scalars that are only logged.

    `trainable` names the modules that learn as wholes; each has `save_pretrained`, so every checkpoint loads as a model.
    """

    trainable: dict[str, nn.Module]

    def save(self, folder: Path) -> None:
        """Write each trainable module to a folder of its name."""
        for name, module in self.trainable.items():
            module.save_pretrained(folder / name)
        follow_umask(folder)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place and strictly."""
        for name, module in self.trainable.items():
            (pattern,) = [each for each in WEIGHTS if any((folder / name).glob(each.format(suffix="*")))]
            load_torch_model(module, folder / name, strict=True, filename_pattern=pattern)
