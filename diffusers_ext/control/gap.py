"""Does the network use its condition? Asked of the loss, on pairs it never trained on, without drawing a picture.

The training loss does not show when a ControlNet begins to follow. This does: at one timestep and fixed noise, compare the
loss under the right condition with that under another pair's. The gap is zero until the network looks at its
condition, then rises at once ("sudden convergence", Zhang & Agrawala 2023, section 3.3).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..data.batches import collate
from ..diffusion.draw import BAR_DELAY
from .objective import ControlObjective

TIMESTEP = 600  # of 1000: the picture's layout is still open, and the prompt alone does not settle it
FOLLOWS = 0.2  # a relative gap that no untrained network shows


class ConditionGap:
    """Held-out losses of a ControlNet under right, zero and wrong conditions: three forward passes.

    batch: a collated batch of held-out pairs, at least two, as `ControlObjective.forward` takes it. The wrong condition
    is the next pair's. batch_size: pairs on the device at once; the losses are means over all of them.
    """

    def __init__(self, objective: ControlObjective, batch: dict, batch_size: int = 16):
        if len(batch["key"]) < 2:
            raise ValueError("a wrong condition needs another pair: give at least two")
        self.objective, self.batch, self.batch_size = objective, batch, batch_size
        self.wrong = batch["conditioning_pixel_values"].roll(1, dims=0)

    @classmethod
    def on(cls, held_out: Dataset, objective: ControlObjective, batch_size: int) -> "ConditionGap | None":
        """Measure on every sample of a data set, as in epoch 0; None where there are not two."""
        count = len(held_out)
        return (
            cls(objective, collate([held_out[0, index] for index in range(count)]), batch_size) if count > 1 else None
        )

    def __call__(self) -> dict[str, float]:
        """Return {"held_out_loss", "held_out_loss_zero", "held_out_loss_wrong", "gap"}; gap = (wrong − right) / right."""
        count = len(self.batch["key"])
        firsts = tqdm(range(0, count, self.batch_size), desc="measuring", unit="batch", delay=BAR_DELAY, leave=False)
        sums = sum(self._losses(slice(first, first + self.batch_size)) for first in firsts)
        right, zero, wrong = (sums / count).tolist()
        losses = {"held_out_loss": right, "held_out_loss_zero": zero, "held_out_loss_wrong": wrong}
        return {**losses, "gap": wrong / right - 1}

    def _losses(self, chunk: slice) -> torch.Tensor:
        """Return the summed losses of some pairs under the right, no and a wrong condition: (3,) float64."""
        objective, device = self.objective, self.objective.device
        batch = {name: values[chunk] for name, values in self.batch.items()}
        batch = {name: values.to(device) if torch.is_tensor(values) else values for name, values in batch.items()}
        latents, conditioning = objective.encode(batch)
        timesteps = torch.full((len(latents),), TIMESTEP, device=latents.device)
        noisy, timesteps, target = objective.diffusion.diffuse(latents, batch["key"], timesteps)
        right = batch["conditioning_pixel_values"]
        losses = [
            F.mse_loss(objective.predict(noisy, timesteps, conditioning, condition).float(), target)
            for condition in (right, torch.zeros_like(right), self.wrong[chunk].to(device))
        ]
        return torch.stack(losses).cpu().double() * len(latents)


def snap(rows: Sequence[dict]) -> int | None:
    """Return the first step from which on every measured gap is at least FOLLOWS: where following began.

    rows: of metrics.jsonl, in order of steps.

    >>> snap([{'step': 100, 'gap': 0.1}, {'step': 200, 'gap': 0.3}, {'step': 300, 'gap': 0.4}])
    200
    """
    found = None
    for row in rows:
        if "gap" in row:
            found = None if row["gap"] < FOLLOWS else found or row["step"]
    return found
