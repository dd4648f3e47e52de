"""Does the network use its condition? Asked of the loss, on pairs it never trained on, without drawing a picture.

The training loss does not show when a ControlNet begins to follow. This does: at one timestep and fixed noise, compare the
loss under the right condition with that under another pair's. The gap is zero until the network looks at its
condition, then rises at once ("sudden convergence", Zhang & Agrawala 2023, section 3.3).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..objectives.control import ControlObjective

TIMESTEP = 600  # of 1000: the picture's layout is still open, and the prompt alone does not settle it
FOLLOWS = 0.2  # a relative gap that no untrained network shows


class ConditionGap:
    """Held-out losses of a ControlNet under right, zero and wrong conditions: three forward passes.

    batch: a collated batch of held-out pairs, at least two, as `ControlObjective.forward` takes it. The wrong condition
    is the next pair's.
    """

    def __init__(self, objective: ControlObjective, batch: dict):
        if len(batch["key"]) < 2:
            raise ValueError("a wrong condition needs another pair: give at least two")
        self.objective, self.batch = objective, batch

    def __call__(self) -> dict[str, float]:
        """Return {"held_out_loss", "held_out_loss_zero", "held_out_loss_wrong", "gap"}; gap = (wrong − right) / right."""
        objective, right = self.objective, self.batch["conditioning_pixel_values"].to(self.objective.device)
        batch = {
            name: value.to(objective.device) if torch.is_tensor(value) else value for name, value in self.batch.items()
        }
        latents, text = objective.encode(batch)
        timesteps = torch.full((len(latents),), TIMESTEP, device=latents.device)
        noisy, timesteps, target = objective.diffusion.diffuse(latents, batch["key"], timesteps)
        conditions = {"": right, "_zero": torch.zeros_like(right), "_wrong": right.roll(1, dims=0)}
        losses = {
            f"held_out_loss{name}": F.mse_loss(
                objective.predict(noisy, timesteps, text, condition).float(), target
            ).item()
            for name, condition in conditions.items()
        }
        return {**losses, "gap": losses["held_out_loss_wrong"] / losses["held_out_loss"] - 1}


def snap(rows: Sequence[dict]) -> int | None:
    """Return the first step from which on every measured gap is at least FOLLOWS: where following began.

    rows: of metrics.jsonl, in order of steps.
    """
    found = None
    for row in rows:
        if "gap" in row:
            found = None if row["gap"] < FOLLOWS else found or row["step"]
    return found
