"""The components of a classifier, as something else than its own sessions fitted them."""

from dataclasses import dataclass

import torch

from .em import Statistics


@dataclass(frozen=True)
class Components:
    """K components of all classes together, sorted by class.

    statistics: counts (K,) and resultants (K, d) of unit features, float64, and classes (K,), by number. ids: (K,) int64,
    never used again; next_id: the first that is free. kappa: the concentration of every component. temperature: what the
    scores are multiplied by for probabilities.

    >>> statistics = Statistics(torch.ones(2).double(), torch.eye(2).double(), torch.arange(2))
    >>> Components(statistics, torch.arange(2), next_id=2, kappa=50.0).lengths
    tensor([1., 1.], dtype=torch.float64)
    """

    statistics: Statistics
    ids: torch.Tensor
    next_id: int
    kappa: float
    temperature: float = 1.0

    @property
    def lengths(self) -> torch.Tensor:
        """The mean resultant length of each component, ‖r‖/n, (K,)."""
        return self.statistics.resultants.norm(dim=1) / self.statistics.counts
