"""Columns of very different scale: rows of unit length would show the largest columns alone.

Where it is asked for, or where the first session's columns differ more than LIMIT-fold, every column is divided by its
root mean square in that session before rows get unit length. The scale then stays, so that all sums still add up exactly.
A column that was zero so far takes its scale from the session that first has other values, which is exact too.
"""

import warnings

import torch
from torch import nn

from ..errors import InputError

LIMIT = 100.0  # the largest root mean square over the lower quartile's; features of usual backbones have 3 to 20


class Columns(nn.Module):
    """scales: (D,) float64, zero for a column that was zero so far; None where columns stay as they come.

    wanted: True, False, or None for where they differ that much. stored: whether a saved classifier has scales.
    """

    scales: torch.Tensor | None

    def __init__(self, dim: int, wanted: bool | None, stored: bool):
        super().__init__()
        self.wanted = wanted
        self.register_buffer("scales", torch.zeros(dim, dtype=torch.float64) if stored else None)

    def learn(self, rows: torch.Tensor, first: bool) -> None:
        """Take up a session's rows (N, D): decide at the first, else only look for new columns; warn of wild scales."""
        found = root_mean_squares(rows)
        if first:
            spread = disparity(found)
            self.scales = found if self.wanted or (self.wanted is None and spread > LIMIT) else None
            if self.wanted is None and self.scales is not None:
                _warn(
                    f"columns differ {spread:.0f}-fold in scale: each is divided by its root mean square in this session"
                )
        elif self.scales is not None:
            self.scales = torch.where(self.scales > 0, self.scales, found)
        left = disparity(found if self.scales is None else found / self._divisors)
        if left > LIMIT and self.wanted is not True and self.scales is None:
            _warn(f"columns differ {left:.0f}-fold in scale, so the largest decide; give standardise=True")
        elif left > LIMIT and not first:
            _warn(
                f"columns differ {left:.0f}-fold from the scale of the first session; were these features made alike?"
            )

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (N, D) float32 with their columns scaled."""
        return rows if self.scales is None else (rows / self._divisors).float()

    def check_mergeable(self, other: "Columns") -> None:
        """Raise InputError unless another's columns were scaled alike."""
        if (self.scales is None) != (other.scales is None) or (
            self.scales is not None and not torch.equal(self.scales, other.scales)
        ):
            raise InputError(
                "merge: the classifiers scaled their columns differently; standardise the features beforehand, alike for both, "
                "and give standardise=False"
            )

    @property
    def _divisors(self) -> torch.Tensor:
        assert self.scales is not None
        return torch.where(self.scales > 0, self.scales, 1.0)


def root_mean_squares(rows: torch.Tensor) -> torch.Tensor:
    """Return those of columns of rows (N, D), (D,) float64."""
    largest = rows.abs().amax(0).double().clamp_min(1e-300)  # taken out, so that no square overflows
    total = sum((part.double() / largest).square().sum(0) for part in rows.split(4096))
    return torch.where(rows.abs().amax(0) > 0, (total / len(rows)).sqrt() * largest, 0.0)


def disparity(scales: torch.Tensor) -> float:
    """Return the largest scale over the lower quartile of those that are not zero."""
    there = scales[scales > 0]
    return float(there.max() / there.quantile(0.25)) if len(there) else 1.0


def _warn(what: str) -> None:
    warnings.warn(f"features: {what}", UserWarning, stacklevel=5)
