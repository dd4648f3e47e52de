"""Several rewards as one. Optimising one reward finds its weaknesses; several rarely share them.

With z = (r - mean) / std of each member, and weights w that sum to 1:

    mean                  Σ w z
    minimum               min z                          as good as its worst member says
    mean_minus_spread     Σ w z - k sqrt(Σ w (z - Σ w z)²)    members that disagree count against the picture
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .interface import Reward
from .reward_inputs import pairs

COMBINATIONS = ("mean", "minimum", "mean_minus_spread")


@dataclass
class Scale:
    """What makes a member comparable: its weight, and mean and standard deviation of its raw scores."""

    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0


class EnsembleReward(Reward):
    """Rewards combined after scaling.

    Args:
        members: rewards by name; a name that `load_reward` takes lets the ensemble be saved.
        scales: by the same names; without, weight 1, mean 0 and deviation 1, which only suits rewards of one scale:
            see `calibrate`.
        combine: mean, minimum (which has no weights) or mean_minus_spread, with k.

    It has a gradient where every member has one. Raises InputError where names, weights or deviations make no sense.
    """

    def __init__(
        self,
        members: dict[str, Any],
        scales: dict[str, Scale] | None = None,
        combine: str = "mean",
        k: float = 1.0,
    ):
        super().__init__()
        self.names, self.combine, self.k = list(members), combine, k
        self.members = torch.nn.ModuleList(members.values())
        self.scales = {name: (scales or {}).get(name, Scale()) for name in self.names}
        self.differentiable = all(member.differentiable for member in self.members)
        self._check(scales or {})

    def _check(self, given: dict[str, Scale]) -> None:
        if len(self.names) < 2:
            raise InputError("an ensemble has two members at least")
        if self.combine not in COMBINATIONS:
            raise InputError(f"combine {self.combine!r}: choose {', '.join(COMBINATIONS)}")
        if unknown := given.keys() - set(self.names):
            raise InputError(f"scales of {', '.join(sorted(unknown))}, which are no members")
        for name, scale in self.scales.items():
            if not all(isinstance(value, (int, float)) for value in asdict(scale).values()):
                raise InputError(f"{name}: {asdict(scale)}; weight, mean and std are numbers")
            if not all(math.isfinite(value) for value in asdict(scale).values()):
                raise InputError(f"{name}: {asdict(scale)}; weight, mean and std are finite")
            if not (scale.weight > 0 and scale.std > 0):
                raise InputError(f"{name}: weight {scale.weight} and std {scale.std}; both must be above 0")
        if self.combine == "minimum" and len({scale.weight for scale in self.scales.values()}) > 1:
            raise InputError("a minimum has no weights; leave them equal, or combine by the mean")

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        raw = [member.score(prompts, images).cpu() for member in self.members]
        scaled = torch.stack([(score - scale.mean) / scale.std for score, scale in zip(raw, self.scales.values())])
        if self.combine == "minimum":
            return scaled.amin(0)
        weights = torch.tensor([scale.weight for scale in self.scales.values()])
        weights = (weights / weights.sum())[:, None]
        mean = (weights * scaled).sum(0)
        if self.combine == "mean":
            return mean
        variance = (weights * (scaled - mean).square()).sum(0)
        # At 0 the square root has no slope; where all members agree the spread is constant there.
        spread = torch.where(variance > 0, variance.clamp(min=1e-12).sqrt(), variance)
        return mean - self.k * spread

    @torch.no_grad()
    def calibrate(self, prompts: str | Sequence[str], images: Any, batch_size: int = 16) -> dict[str, Scale]:
        """Measure every member's mean and deviation on pairs like those to be scored, set them and return them.

        The deviation is that among pictures of one prompt, pooled, where prompts repeat: what ranking has to do with.
        Without repeated prompts it is that over all pairs. Prompts and images as in `score`. Raises InputError if a member does not vary.
        """
        prompts, images = pairs(prompts, images)
        groups = [
            torch.tensor([i for i, other in enumerate(prompts) if other == prompt]) for prompt in dict.fromkeys(prompts)
        ]
        repeated = [group for group in groups if len(group) > 1] or [torch.arange(len(prompts))]
        for name, member in zip(self.names, self.members):
            scores = member.score(prompts, images, batch_size).double().cpu()
            squares = sum((scores[group] - scores[group].mean()).square().sum() for group in repeated)
            std = float((squares / max(1, sum(len(group) - 1 for group in repeated))).sqrt())
            if not std > 0:
                raise InputError(f"{name}: scores all pictures of a prompt alike; give more, or leave it out")
            self.scales[name] = Scale(self.scales[name].weight, float(scores.mean()), std)
        return self.scales

    def save(self, path: str | os.PathLike) -> None:
        """Write names, scales and combination as JSON, which `load_reward` reads."""
        members = {name: asdict(scale) for name, scale in self.scales.items()}
        record = {"members": members, "combine": self.combine, "k": self.k}
        Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@dataclass
class EnsembleRecord:
    """What `EnsembleReward.save` wrote: members by the names that `load_reward` takes."""

    scales: dict[str, Scale]
    combine: str = "mean"
    k: float = 1.0


def read_ensemble(path: Path) -> EnsembleRecord:
    """Read an ensemble's file, and nothing that it names. InputError where it is not what `EnsembleReward.save` writes."""
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(record, dict) or not isinstance(record.get("members"), dict):
            raise TypeError("expected an object whose 'members' is an object of names")
        scales = {name: Scale(**scale) for name, scale in record["members"].items()}
        return EnsembleRecord(scales, record.get("combine", "mean"), float(record.get("k", 1.0)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: no ensemble as EnsembleReward.save writes it ({error})") from None
