"""Scores of components and classes: equations 1 to 5 of Xie, Yan & He 2022, for classes with unequal component counts.

With one κ for all, s_ck(z) = κ μ_ckᵀz + ln π_ck; a class's score is the logsumexp over its components, and the normaliser
C_d(κ) cancels between classes. Components of classes with equally many stand side by side, so that a logsumexp is taken
over a view, once per distinct count; padding, and loops over classes, are not needed.
"""

import torch

from .mixture_em import Statistics
from .vmf import log_normalizer


class ComponentScores:
    """A frozen view of a mixture for prediction. weights: "uniform" or "counts" within a class; score: see `logits`."""

    def __init__(self, statistics: Statistics, kappa: float, classes: int, weights: str, score: str, device=None):
        self.kappa, self.score, self.classes = kappa, score, classes
        per_class = torch.bincount(statistics.classes, minlength=classes)
        size = per_class[statistics.classes]
        self.order = torch.argsort(size, stable=True)  # by count, then class
        shares = -size.double().log()
        if weights == "counts":
            total = torch.zeros(classes, dtype=torch.float64).index_add(0, statistics.classes, statistics.counts)
            shares = (statistics.counts / total[statistics.classes]).log()
        self.log_weights = shares[self.order].float().to(device)
        self.means = statistics.means[self.order].float().to(device)
        self.lengths = statistics.resultants[self.order].norm(dim=1).to(device)
        by_count = torch.argsort(per_class, stable=True)
        self.groups = [(int(n), int((per_class == n).sum())) for n in per_class.unique()]
        self.back = torch.argsort(by_count).to(device)
        self.order = self.order.to(device)

    def logits(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return s_ck of unit features (N, d) in this layout's order, (N, K).

        "plugin" is the density at the estimated means. "predictive" integrates over the means that the counts leave possible:
        p(z | component) = C_d(κ) C_d(κ‖r‖) / C_d(‖κr + κz‖), float64, which discounts components seen a few times.
        """
        cosine = embedded @ self.means.T
        if self.score == "plugin":
            return torch.add(self.log_weights, cosine, alpha=self.kappa)
        dim, lengths = embedded.shape[1], self.lengths
        joint = (lengths**2 + 1 + 2 * lengths * cosine.double()).clamp_min(0).sqrt()
        fixed = log_normalizer(self.kappa * lengths, dim)
        return (fixed - log_normalizer(self.kappa * joint, dim) + self.log_weights).to(embedded.dtype)

    def of_classes(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the classes' scores, (N, C), −inf for a class without components."""
        parts, start = [], 0
        for count, classes in self.groups:
            part = logits[:, start : start + count * classes]
            if count == 0:
                part = logits.new_full((len(logits), classes), -torch.inf)
            elif count > 1:
                part = part.unflatten(1, (classes, count)).logsumexp(2)
            parts.append(part)
            start += count * classes
        return torch.cat(parts, 1)[:, self.back]
