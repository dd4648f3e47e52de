"""Scores of components and classes: equations 1 to 5 of Xie, Yan & He 2022, for classes with unequal component counts.

With one κ for all, s_ck(z) = κ μ_ckᵀz + ln π_ck; a class's score is the logsumexp over its components, and the normaliser
C_d(κ) cancels between classes. Classes with equally many components form a group, in which all first components stand before
all second ones: a logsumexp is then taken over slices, and neither padding nor loops over classes are needed.
"""

import torch
from torch.nn import functional as F

from .em import Statistics
from .vmf import log_normalizer, mean_resultant_length

SCORES = {"auto": ("plugin", "predictive"), "plugin": ("plugin",), "predictive": ("predictive",)}


class ComponentScores:
    """A mixture laid out for prediction: s(z) = directions z + offsets, for all components at once.

    weights: of the components in a class, "uniform" or by "counts". shrinkage: ρ of a von Mises-Fisher prior of the
    components' means around the class's own direction m_c, which makes resultants r + ρ m_c; 0 is the paper's rule.
    score: "plugin" is the density at the estimated means; "predictive" integrates over the means that the counts leave possible,
    which discounts components seen a few times, see `predictive`.
    """

    def __init__(
        self, statistics: Statistics, kappa: float, classes: int, weights: str, score: str, shrinkage: float = 0.0
    ):
        per_class = torch.bincount(statistics.classes, minlength=classes)
        size = per_class[statistics.classes]
        rank = torch.arange(len(size)) - (per_class.cumsum(0) - per_class)[statistics.classes]
        self.order = torch.argsort((size * size.max() + rank) * classes + statistics.classes)
        resultants = shrunk(statistics, classes, shrinkage)[self.order]
        slopes, offsets = torch.full((len(size),), kappa, dtype=torch.float64), -size.double().log()
        if weights == "counts":
            total = torch.bincount(statistics.classes, statistics.counts, minlength=classes)
            offsets = (statistics.counts / total[statistics.classes]).log()
        self.log_weights = offsets = offsets[self.order]
        if score == "predictive":
            slopes, more = predictive(resultants.norm(dim=1), kappa, resultants.shape[1])
            offsets = offsets + more
        self.directions = (slopes[:, None] * F.normalize(resultants, dim=1)).float()
        self.offsets = offsets.float()
        self.groups = [(int(n), int((per_class == n).sum())) for n in per_class.unique()]
        self.back = torch.argsort(torch.argsort(per_class, stable=True))

    def logits(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return s_ck of unit features (N, d), up to what all components share: (N, K), columns as in `order`."""
        return torch.addmm(self.offsets, embedded, self.directions.T)

    def of_classes(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the classes' scores, (N, C), −inf for a class without components."""
        return self.reduce(logits, torch.logsumexp)

    def reduce(self, values: torch.Tensor, over) -> torch.Tensor:
        """Reduce values (N, K) over each class's components with torch.logsumexp or torch.amax: (N, C)."""
        parts, start = [], 0
        for count, classes in self.groups:
            part = values[:, start : start + count * classes]
            if count == 0:
                part = values.new_full((len(values), classes), -torch.inf)
            elif count > 1:
                part = over(part.unflatten(1, (count, classes)), 1)
            parts.append(part)
            start += count * classes
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)[:, self.back]


def predictive(lengths: torch.Tensor, kappa: float, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return slope and offset, (K,) float64, of ln p(z | component) − ln C_d(κ) as a line in the cosine t of z and resultant.

    With a uniform prior the mean's posterior is von Mises-Fisher of concentration κ‖r‖, so that p(z | component) =
    C_d(κ) C_d(κ‖r‖) / C_d(κ‖r + z‖). The line touches it at the cosine that a sample is expected to have, A_d(κ) A_d(κ‖r‖).
    """
    ratios = mean_resultant_length(torch.cat([lengths.new_tensor([kappa]), kappa * lengths]), dim)
    at = ratios[0] * ratios[1:]
    joint = (lengths**2 + 1 + 2 * lengths * at).sqrt()
    slope = kappa * lengths / joint * mean_resultant_length(kappa * joint, dim)
    return slope, log_normalizer(kappa * lengths, dim) - log_normalizer(kappa * joint, dim) - slope * at


def shrunk(statistics: Statistics, classes: int, shrinkage: float) -> torch.Tensor:
    """Return resultants drawn towards their classes' directions, (K, d) float64; a class's is the mean of its components'."""
    if shrinkage == 0:
        return statistics.resultants
    own = torch.zeros(classes, statistics.resultants.shape[1], dtype=torch.float64)
    own = F.normalize(own.index_add(0, statistics.classes, statistics.means), dim=1)
    return statistics.resultants + shrinkage * own[statistics.classes]
