"""One module per training objective: model and loss together, `forward(batch) -> {"loss": ..., parts}`."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"


class Objective(nn.Module):
    """What `loop.train` drives: `forward(batch) -> {"loss": scalar, ...}`, other entries scalars that are only logged.

    `trainable` names the modules that learn; each has `save_pretrained`, so every checkpoint loads as a model.
    """

    trainable: dict[str, nn.Module]

    def save(self, folder: Path) -> None:
        """Write each trainable module to a folder of its name."""
        for name, module in self.trainable.items():
            module.save_pretrained(folder / name)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place and strictly."""
        for name, module in self.trainable.items():
            (path,) = [folder / name / weights for weights in WEIGHTS if (folder / name / weights).exists()]
            module.load_state_dict(load_file(path))
