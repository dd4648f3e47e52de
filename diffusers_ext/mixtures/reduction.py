"""Mixture reduction: which components of a class are one?

Two components merge exactly: counts and resultants add. Pairs are merged greedily, the best first, until keeping every pair
apart is worth more than nothing. What a pair is worth apart, with n = n_i + n_j, r = r_i + r_j and N_c the class's count:

    evidence   ln C_d(0) − ln C_d(κ‖r_i‖) − ln C_d(κ‖r_j‖) + ln C_d(κ‖r‖) + ln Γ(n_i) + ln Γ(n_j) − ln Γ(n) + ln α
    icl        κ(‖r_i‖ + ‖r_j‖ − ‖r‖) + n_i ln n_i + n_j ln n_j − n ln n − (d/2) ln N_c
    kl         κ A_d(κ) (w_i + w_j − ‖w_i μ_i + w_j μ_j‖) − threshold, with w = n / N_c (Runnalls 2007, with matched moments)
    cosine     threshold − μ_i·μ_j

The first is the log odds of two clusters against one, with κ known, means uniform on the sphere and a Chinese restaurant's
prior of partitions; it has no threshold to tune. The paper (Xie, Yan & He 2022) leaves the criterion open.
"""

import torch

from .blocks import blocks, gather
from .vmf import log_normalizer, mean_resultant_length

THRESHOLDS = {"kl": 1.0, "cosine": 0.8}  # where none is given


def reduce(
    counts: torch.Tensor,
    resultants: torch.Tensor,
    classes: torch.Tensor,
    kappa: float,
    criterion: str = "evidence",
    alpha: float = 1.0,
    threshold: float | None = None,
    cap: int = 32,
) -> torch.Tensor:
    """Return the component that each one is merged into, (K,) positions, itself where it stays.

    counts (K,), resultants (K, d) and classes (K,); only components of one class are merged. cap: a class with more
    components than this continues to merge its best pairs. Ties go to the lowest position.
    """
    target = torch.arange(len(counts))
    worth = _Worth(
        kappa, resultants.shape[1], criterion, alpha, THRESHOLDS.get(criterion) if threshold is None else threshold
    )
    for _, rows in blocks(classes, cells=1 << 14):
        number, stack = gather(counts, rows).double(), gather(resultants, rows).double()
        merged = _merge(number, stack @ stack.transpose(1, 2), rows >= 0, worth, cap)
        inside = rows >= 0
        target[rows[inside]] = rows.gather(1, merged)[inside]
    return target


def _merge(number: torch.Tensor, gram: torch.Tensor, alive: torch.Tensor, worth: "_Worth", cap: int) -> torch.Tensor:
    """Merge within each row of number (C, k) and gram (C, k, k) of resultants; return the places merged into, (C, k)."""
    classes, width = number.shape
    place = torch.arange(width).repeat(classes, 1)
    total = number.sum(1)
    active = (alive.sum(1) > 1).nonzero().squeeze(1)
    apart = _pairs_apart(number, gram, alive, worth, total)
    while len(active):
        best, flat = apart[active].flatten(1).min(1)
        go = (best < 0) | (alive[active].sum(1) > cap)
        active, flat = active[go], flat[go]
        keep, gone = flat // width, flat % width
        number[active, keep] += number[active, gone]
        gram[active, keep] += gram[active, gone]
        gram[active, :, keep] += gram[active, :, gone]
        alive[active, gone] = False
        place[active] = torch.where(place[active] == gone[:, None], keep[:, None], place[active])
        _update(apart, active, keep, gone, number, gram, alive, worth, total)
        active = active[alive[active].sum(1) > 1]
    return place


def _pairs_apart(number, gram, alive, worth: "_Worth", total) -> torch.Tensor:
    """What each pair is worth apart, (C, k, k), infinite below the diagonal and for what is gone."""
    square = gram.diagonal(dim1=1, dim2=2)
    value = worth(number[:, :, None], number[:, None], square[:, :, None], square[:, None], gram, total[:, None, None])
    pair = alive[:, :, None] & alive[:, None] & torch.ones_like(gram[0], dtype=torch.bool).triu(1)
    return torch.where(pair, value, torch.inf)


def _update(apart, active, keep, gone, number, gram, alive, worth: "_Worth", total) -> None:
    """Bring `apart` up to date after one merge in each active class: only the row and column that changed."""
    at = torch.arange(len(active))
    apart[active, gone] = torch.inf
    apart[active, :, gone] = torch.inf
    square = gram[active].diagonal(dim1=1, dim2=2)
    n = number[active]
    value = worth(n, n[at, keep, None], square, square[at, keep, None], gram[active, keep], total[active, None])
    column = torch.arange(n.shape[1])[None]
    value = torch.where(alive[active] & (column != keep[:, None]), value, torch.inf)
    apart[active, keep] = torch.where(column > keep[:, None], value, torch.inf)
    apart[active, :, keep] = torch.where(column < keep[:, None], value, torch.inf)


class _Worth:
    """The worth of two components apart, by criterion; broadcasts over counts, squared lengths and inner products."""

    def __init__(self, kappa: float, dim: int, criterion: str, alpha: float, threshold: float | None):
        self.kappa, self.dim, self.criterion, self.threshold = kappa, dim, criterion, threshold
        self.alpha = torch.tensor(alpha, dtype=torch.float64)
        self.formula = {"evidence": self._evidence, "icl": self._icl, "kl": self._kl, "cosine": self._cosine}[criterion]

    def __call__(self, n_i, n_j, square_i, square_j, inner, total) -> torch.Tensor:
        return self.formula(n_i, n_j, square_i.clamp_min(0), square_j.clamp_min(0), inner, total)

    def _evidence(self, n_i, n_j, square_i, square_j, inner, total):
        joint, zero = (square_i + square_j + 2 * inner).clamp_min(0), torch.zeros_like(inner)
        squares = torch.stack(torch.broadcast_tensors(zero, joint, square_i, square_j))
        one, two, i, j = log_normalizer(self.kappa * squares.sqrt(), self.dim)
        return one + two - i - j + torch.lgamma(n_i) + torch.lgamma(n_j) - torch.lgamma(n_i + n_j) + self.alpha.log()

    def _icl(self, n_i, n_j, square_i, square_j, inner, total):
        lengths = square_i.sqrt() + square_j.sqrt() - (square_i + square_j + 2 * inner).clamp_min(0).sqrt()
        entropy = torch.xlogy(n_i, n_i) + torch.xlogy(n_j, n_j) - torch.xlogy(n_i + n_j, n_i + n_j)
        return self.kappa * lengths + entropy - self.dim / 2 * total.log()

    def _kl(self, n_i, n_j, square_i, square_j, inner, total):
        w_i, w_j, cosine = n_i / total, n_j / total, self._cos(square_i, square_j, inner)
        mean = (w_i**2 + w_j**2 + 2 * w_i * w_j * cosine).clamp_min(0).sqrt()
        kappa = torch.tensor(self.kappa, dtype=torch.float64)
        return kappa * mean_resultant_length(kappa, self.dim) * (w_i + w_j - mean) - self.threshold

    def _cosine(self, n_i, n_j, square_i, square_j, inner, total):
        return self.threshold - self._cos(square_i, square_j, inner)

    @staticmethod
    def _cos(square_i, square_j, inner):
        return inner / (square_i * square_j).sqrt().clamp_min(1e-300)


def log_evidence(counts: torch.Tensor, resultants: torch.Tensor, kappa: float, alpha: float = 1.0) -> float:
    """Return the log evidence of all components, up to what no partition changes: of κ and a partition together."""
    dim = resultants.shape[1]
    ends = log_normalizer(torch.tensor([kappa, 0.0], dtype=torch.float64), dim)
    lengths = resultants.double().norm(dim=1)
    of_each = counts * ends[0] + ends[1] - log_normalizer(kappa * lengths, dim) + torch.lgamma(counts.double())
    return float((of_each + torch.tensor(alpha, dtype=torch.float64).log()).sum())
