"""Tune a ControlNet to keep to its condition: by a reward of the decoded picture, or by preference among conditions.

    ConsistencyObjective            ControlNet++ (Li et al. 2024, equations 7 and 8): decodes, needs a gradient of the agreement
    ConditionPreferenceObjective    CPO (2025): decodes nothing, works at noisy timesteps too

Both keep the ControlNet's own loss beside. Shapes: B samples, latents (B, c, h, w), conditions (B, C, H, W).
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from .. import randomness
from ..control.objective import ControlObjective
from ..diffusion.bases.encoders import Encoders
from ..diffusion.paths import split
from ..randomness import Key
from ..rewards.agreement import Agreement
from .reward_path import RewardPath


class ConditionPath(RewardPath):
    """From latents to how well their pictures keep to conditions, in bounded memory; `forward(latents, conditions)`."""

    def __init__(self, agreement: Agreement, encoders: Encoders, decoder: nn.Module | None = None, batch_size: int = 1):
        super().__init__(agreement, encoders, decoder, batch_size)

    def score(self, pixels: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        assert self.reward is not None
        return self.reward(pixels, given.float())


class ConsistencyObjective(ControlObjective):
    """L_diffusion + λ · 1[t ≤ t_max] · (1 − agreement(D(ẑ_0(z_t)), c)), ẑ_0 the one-step estimate of a noised training picture.

    At noisier timesteps the estimate is a blur that no reward can judge. Only the samples below t_max are decoded; the
    official code decodes all and multiplies four fifths of them by zero.
    """

    def __init__(self, *args, path: ConditionPath, weight: float = 1.0, threshold: int = 200, **switches):
        super().__init__(*args, **switches)
        self.path, self.weight, self.threshold = path, weight, threshold

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        latents, conditioning = self.encode(batch)
        noisy, timesteps, target = self.diffusion.diffuse(latents, batch["key"])
        conditions = batch["conditioning_pixel_values"]
        prediction = self.predict(noisy, timesteps, conditioning, conditions)
        loss = self.diffusion.loss(prediction, target, timesteps)
        near = timesteps <= self.threshold
        if not near.any():
            return {"loss": loss, "diffusion": loss, "inconsistency": loss.new_zeros(())}
        clean = self.clean(noisy[near], prediction[near].float(), timesteps[near])
        inconsistency = (1 - self.path(clean, conditions[near])).sum() / len(near)
        return {"loss": loss + self.weight * inconsistency, "diffusion": loss, "inconsistency": inconsistency}

    def clean(self, noisy: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return ẑ_0 of noisy latents, (B, c, h, w)."""
        path = self.diffusion.path
        return split(path.prediction, noisy, prediction, path.coefficients(timesteps, noisy)).clean


class ConditionPreferenceObjective(ControlObjective):
    """s · max(0, L_w − L_l + m) + ρ L_w, at t ≤ t_max: the picture's own condition should explain it better than another.

    L_w and L_l are a sample's denoising errors under its condition and under a losing one, the same noise. With
    s = σ(β/2 · [(L_w − L_l) − (L_w − L_l)_start]), not differentiated, a sample counts less the further it is ahead of the
    ControlNet that the run started from. The losing condition is the sample's own, moved by an eighth to three eighths of the
    side in each direction.
    """

    def __init__(
        self,
        *args,
        beta: float = 5000.0,
        margin: float = 1e-2,
        threshold: int = 600,
        diffusion_weight: float = 0.05,
        **switches,
    ):
        super().__init__(*args, **switches)
        self.beta, self.margin, self.threshold, self.diffusion_weight = beta, margin, threshold, diffusion_weight
        self.start = copy.deepcopy(self.front).requires_grad_(False)

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        latents, conditioning = self.encode(batch)
        noisy, timesteps, target = self.diffusion.diffuse(latents, batch["key"])
        conditions = batch["conditioning_pixel_values"]
        losing = moved(conditions, batch["key"], self.diffusion.seed)

        def errors(condition: torch.Tensor, front: nn.Module) -> torch.Tensor:
            prediction = self.predict(noisy, timesteps, conditioning, condition, front)
            return (prediction.float() - target).square().mean(dim=(1, 2, 3))

        won, lost = errors(conditions, self.front), errors(losing, self.front)
        with torch.no_grad():
            start_won, start_lost = errors(conditions, self.start), errors(losing, self.start)
            behind = torch.sigmoid(self.beta / 2 * ((won - lost) - (start_won - start_lost)))
        hinge = behind * (won - lost + self.margin).relu() * (timesteps <= self.threshold)
        parts = {"diffusion": won.mean(), "hinge": hinge.mean(), "preferred": (won < lost).float().mean()}
        return {"loss": parts["hinge"] + self.diffusion_weight * parts["diffusion"], **parts}


def moved(conditions: torch.Tensor, keys: Sequence[Key], seed: int) -> torch.Tensor:
    """Return each condition moved, around the edges, by an eighth to three eighths of each side: its key says where to.

    >>> moved(torch.rand(1, 3, 16, 16), [(0, 0)], seed=0).shape
    torch.Size([1, 3, 16, 16])
    """
    height, width = conditions.shape[-2:]
    result = []
    for condition, key in zip(conditions, keys):
        draw = randomness.generator(seed, "losing_condition", *key)
        shift = [int(draw.integers(side // 8, 3 * side // 8 + 1) * draw.choice([-1, 1])) for side in (height, width)]
        result.append(condition.roll(shift, dims=(1, 2)))
    return torch.stack(result)
