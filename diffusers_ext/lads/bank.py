"""Augmentation networks: many small independent networks as one module (LADS, Dunlap et al. 2023).

    f_g(x) = W2_g·relu(W1_g·x + b1_g) + b2_g        one network per unseen domain and run, g = 1 … G
    f_g(x) = x + ...                                with residual=True, the last layer then starts at zero

Each parameter's first dimension is the network. Networks never mix, so training the bank by the sum of their losses is
training each alone, at the cost of one batched product per layer.

Shapes: R runs, each with G/R networks; B rows in a batch, N in all; D the width of the embeddings, H hidden units.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .. import randomness

ROWS = 4096  # that `augment` moves at a time


class AugmentationBank(nn.Module):
    """G networks of D → H → D."""

    def __init__(self, networks: int, dim: int, hidden: int, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.weight1 = nn.Parameter(torch.zeros(networks, hidden, dim))
        self.bias1 = nn.Parameter(torch.zeros(networks, hidden))
        self.weight2 = nn.Parameter(torch.zeros(networks, dim, hidden))
        self.bias2 = nn.Parameter(torch.zeros(networks, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what every network makes of its run's rows: (R, B, D) -> (G, B, D), not normalised."""
        runs, rows, dim = x.shape
        networks, hidden, _ = self.weight1.shape
        # Weights on the left, rows in columns: then no product, forwards or backwards, needs a copy of a transpose.
        # The networks of one run read the same rows: their first layers are one product.
        first, bias = self.weight1.view(runs, -1, dim), self.bias1.view(runs, -1, 1)
        h = torch.baddbmm(bias, first, x.mT).relu().view(networks, hidden, rows)
        o = torch.baddbmm(self.bias2[..., None], self.weight2, h).mT
        return o + each_network(x, networks // runs) if self.residual else o


def each_network(values: torch.Tensor, networks: int) -> torch.Tensor:
    """Give each network of a run that run's rows: (R, ...) -> (R·networks, ...), a view where there is one run."""
    return values[:, None].expand(-1, networks, *values.shape[1:]).flatten(0, 1)


def new_bank(keys: list[tuple[int, int]], dim: int, hidden: int, residual: bool = False) -> AugmentationBank:
    """Return a bank with one network for each key (seed, domain), drawn as torch draws a Linear layer.

    Weights and biases are uniform in ±1/√fan-in; a residual network's last layer is zero, so that it moves nothing.
    """
    bank = AugmentationBank(len(keys), dim, hidden, residual)
    with torch.no_grad():
        for network, (seed, domain) in enumerate(keys):
            draw = randomness.generator(seed, "lads-init", domain)
            for parameter, fan_in in zip(bank.parameters(), (dim, dim, hidden, hidden)):
                if not (residual and fan_in == hidden and parameter.shape[1] == dim):
                    uniform = draw.uniform(-(fan_in**-0.5), fan_in**-0.5, parameter.shape[1:])
                    parameter[network] = torch.from_numpy(uniform.astype(np.float32))
    return bank


@torch.no_grad()
def augment(bank: AugmentationBank, x: torch.Tensor) -> torch.Tensor:
    """Return the unit vectors f_g(x)/‖f_g(x)‖ of all rows: (N, D) unit vectors -> (G, N, D)."""
    parts = [F.normalize(bank(rows[None].expand(1, -1, -1)), dim=-1) for rows in x.split(ROWS)]
    return torch.cat(parts, dim=1)


def part_way(x: torch.Tensor, moved: torch.Tensor, seed: int) -> torch.Tensor:
    """Return unit vectors a random share s ~ U(0, 1) of the way from x to the moved rows: (N, D), (K, N, D) -> (K, N, D).

    As LARE (Dunlap et al. 2024) samples between an image and its domain, instead of at one end.
    """
    share = randomness.generator(seed, "lads-strength").random((*moved.shape[:2], 1), dtype=np.float32)
    return F.normalize(torch.lerp(x.expand_as(moved), moved, torch.from_numpy(share).to(moved)), dim=-1)


def keeps_meaning(
    x: torch.Tensor, moved: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, moves: torch.Tensor
) -> torch.Tensor:
    """Say which moved rows to train on, (K, N) bool: those that text still gives their class, and that did move.

    x (N, D), moved (K, N, D), labels (N,); classes (C, D) of class text; moves (K, N, D) of directions in text. A row is
    dropped if its zero-shot class was its label and is no more, or if it is not further along its direction than before
    (the filter of ALIA, Dunlap et al. 2023, among embeddings).
    """
    right, still = (x @ classes.T).argmax(-1) == labels, (moved @ classes.T).argmax(-1) == labels
    return (still | ~right) & (((moved - x) * moves).sum(-1) > 0)
