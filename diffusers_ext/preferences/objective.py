"""The ranking objective of reward models (Xu et al. 2023, section 3.1; Bradley & Terry 1952).

Shapes: B prompts, N images of all of them together, P pairs.
"""

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..engine.objective import Objective

# (prompts, images (N, ...), which prompt each image answers (N,)) -> rewards (N,)
Rewards = Callable[[list, torch.Tensor, torch.Tensor], torch.Tensor]


def pairwise_loss(rewards: torch.Tensor, pairs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return Σ w·(−log σ(r_winner − r_loser)), a scalar; equation 1 of the paper with w = 1/P.

    rewards (N,); pairs (P, 2) of positions, winner first; weights (P,). The official trainer's cross-entropy of
    [r_winner, r_loser] against the first is the same function.
    """
    return (weights * F.softplus(rewards[pairs[:, 1]] - rewards[pairs[:, 0]])).sum()


class RankingObjective(Objective):
    """Rank the images of each prompt as people did. Each image is encoded once, in however many pairs it stands.

    model: the module that learns, saved as "reward". rewards: how the batch's inputs become rewards; see
    `reward_inputs`. frozen: modules of it that do not learn: they stay in eval mode, without dropout.
    """

    def __init__(self, model: nn.Module, rewards: Rewards, frozen: list[nn.Module]):
        super().__init__()
        self.model, self.rewards, self.frozen = model, rewards, tuple(frozen)
        self.trainable = {"reward": model}
        self.train()

    def train(self, mode: bool = True) -> "RankingObjective":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: what `preferences.dataset.RankedImages` gives, collated. "accuracy" is the batch's own, weighted as the loss."""
        images, prompt_index, pairs = join(batch)
        rewards = self.rewards(batch["prompt"], images, prompt_index)
        pairs = pairs.to(rewards.device)
        weights = batch["pair_weight"].to(rewards)[prompt_index[pairs[:, 0]]]
        right = rewards[pairs[:, 0]] > rewards[pairs[:, 1]]
        return {"loss": pairwise_loss(rewards, pairs, weights), "accuracy": (weights * right).sum()}

    @torch.no_grad()
    def score(self, batch: dict) -> list[torch.Tensor]:
        """Return the rewards of each prompt's images, B tensors of (K,), float32 on the CPU."""
        images, prompt_index, _ = join(batch)
        return list(self.rewards(batch["prompt"], images, prompt_index).float().cpu().split(_counts(batch)))


def join(batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return all images of a batch (N, ...), the prompt of each (N,), and all pairs among the N, (P, 2)."""
    counts = _counts(batch)
    images = torch.stack([image for images in batch["images"] for image in images])
    prompt_index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pairs = [pairs + first for pairs, first in zip(batch["pairs"], accumulate(counts, initial=0))]
    return images, prompt_index.to(images.device), torch.from_numpy(np.concatenate(pairs))


def _counts(batch: dict) -> list[int]:
    return [len(images) for images in batch["images"]]
