"""Memory that is balanced at two levels: across classes, and inside a class across its components (Xie, Yan & He 2022).

The paper states the two levels; the shares are ours: budgets are filled like water, in equal shares of which nobody gets more than
there is, and inside a component exemplars are herded (iCaRL, Rebuffi et al. 2017, algorithm 4), so that the first m of them have a mean
close to the component's. Invariants, for C classes and a budget B: at most B exemplars; class sizes differ by at most one unless
a class ran out; so do component sizes inside a class; every class keeps one while B ≥ C.
"""

import torch
from torch import nn

from .blocks import blocks, gather, rows_of
from .spaces import MixtureSpace, Whitener

TABLE = 2048  # samples of a component whose inner products are computed at once


class Exemplars(nn.Module):
    """What is remembered: features (M, d) float32, their classes and sessions (M,) int64."""

    features: torch.Tensor
    classes: torch.Tensor
    sessions: torch.Tensor

    def __init__(self, dim: int, stored: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(stored, dim))
        self.register_buffer("classes", torch.zeros(stored, dtype=torch.int64))
        self.register_buffer("sessions", torch.zeros(stored, dtype=torch.int64))

    def add(self, features: torch.Tensor, classes: torch.Tensor, sessions: torch.Tensor) -> None:
        """Append; `keep` brings the number back to the budget."""
        self.features = torch.cat([self.features, features])
        self.classes, self.sessions = torch.cat([self.classes, classes]), torch.cat([self.sessions, sessions])

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        self.features, self.classes, self.sessions = self.features[rows], self.classes[rows], self.sessions[rows]

    def places(self, space: MixtureSpace, whitener: Whitener | None) -> torch.Tensor:
        """Return the component of each exemplar in a space, (M,) positions."""
        return space.nearest(space.embed(self.features, whitener), self.classes, space.statistics(whitener))

    def rewrite(self, space: MixtureSpace, whitener: Whitener | None, budget: int) -> None:
        """Keep `budget` of what is here, balanced by a space's components."""
        embedded = space.embed(self.features, whitener)
        places = space.nearest(embedded, self.classes, space.statistics(whitener))
        self.keep(select(embedded, self.classes, places, space.counts[places], budget))

    def drop(self, gone: int) -> None:
        """Forget a class; later classes move up by one."""
        self.keep(self.classes != gone)
        self.classes = self.classes - (self.classes > gone).long()


def select(
    features: torch.Tensor, classes: torch.Tensor, components: torch.Tensor, counts: torch.Tensor, budget: int
) -> torch.Tensor:
    """Return the rows to keep, (M,) with M ≤ budget: by class, then component, then the order of herding.

    features (N, d) of unit length; classes (N,); components (N,) numbers of any kind, each of one class; counts (N,): what
    a sample's component has seen in all. Where a class gets fewer than it has components, those that saw most keep one.

    >>> select(torch.eye(4), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), torch.ones(4), 2).shape
    torch.Size([2])
    """
    owners, first, component = _number(components, classes)
    available = torch.bincount(component, minlength=len(owners))
    present, of_owner = torch.unique(owners, return_inverse=True)
    in_class = torch.zeros(len(present), dtype=torch.int64).index_add(0, of_owner, available)
    share = equal_shares(in_class[None], torch.tensor([budget]), -torch.arange(len(present))[None].double())[0]
    quota = torch.zeros_like(available)
    grid = rows_of(of_owner, torch.arange(len(present)))
    inside = grid >= 0
    filled = equal_shares(gather(available, grid), share, gather(counts[first].double(), grid))
    quota[grid[inside]] = filled[inside]
    return _herd(features, component, quota)


def _number(components: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number components 0 .. K−1 by class; return their classes (K,), a sample of each (K,), and each sample's number (N,)."""
    names, of_sample = torch.unique(torch.stack([classes, components], 1), dim=0, return_inverse=True)
    first = torch.full((len(names),), len(classes)).scatter_reduce(0, of_sample, torch.arange(len(classes)), "amin")
    return names[:, 0], first, of_sample


def equal_shares(available: torch.Tensor, budget: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
    """Fill each row of available (C, k) with its budget (C,): equal shares, none above what is there.

    What is left after whole shares goes, one each, to those of highest priority (C, k), ties to the lowest column.
    """
    low, high = torch.zeros_like(budget), torch.maximum(budget, torch.zeros_like(budget)) + 1
    while bool((high - low > 1).any()):  # the highest level that the budget reaches
        middle = (low + high) // 2
        fits = available.clamp_max(middle[:, None]).sum(1) <= budget
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    share = available.clamp_max(low[:, None])
    left = budget - share.sum(1)
    wanting = available > low[:, None]
    order = torch.where(wanting, priority, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order).contiguous())
    return share + (wanting & (rank < left[:, None])).long()


def _herd(features: torch.Tensor, component: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
    """Pick quota (K,) samples of each component so that running means stay close to its mean; ties to the lowest row."""
    picked, order = [], []
    for wanted, rows in blocks(component, cells=1 << 14):
        wanted, rows = wanted[quota[wanted] > 0], rows[quota[wanted] > 0]
        if not len(wanted):
            continue
        block, free, at = gather(features, rows), rows >= 0, torch.arange(len(rows))
        pull = torch.einsum("cnd,cd->cn", block, block.sum(1) / free.sum(1, keepdim=True))
        drag, inner = torch.zeros_like(pull), block @ block.transpose(1, 2) if rows.shape[1] <= TABLE else None
        for step in range(int(quota[wanted].max())):
            # |mean − (sum of picked + z)/(step+1)| is least where z has the largest product with what is missing
            best = ((step + 1) * pull - drag).masked_fill(~free, -torch.inf).argmax(1)
            going = step < quota[wanted]
            free[at[going], best[going]] = False
            drag += inner[at, best] if inner is not None else torch.einsum("cnd,cd->cn", block, block[at, best])
            picked.append(rows[at[going], best[going]])
            order.append(wanted[going])
    if not picked:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat(picked)[torch.argsort(torch.cat(order), stable=True)]
