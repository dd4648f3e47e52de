"""Scores of components and classes: equations 1 to 5 of Xie, Yan & He 2022, for classes with unequal component counts.

With one κ for all, s_ck(z) = κ μ_ckᵀz + ln π_ck; a class's score is the logsumexp over its components, and the normaliser
C_d(κ) cancels between classes. Components of classes with equally many stand side by side, so that a logsumexp is taken
over a view, once per distinct count; padding, and loops over classes, are not needed.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .mixture_em import Statistics
from .vmf import log_normalizer

TEMPERATURES = torch.logspace(-3, 1, 41)


class ComponentScores:
    """A mixture laid out for prediction.

    weights: of the components in a class, "uniform" or by "counts". shrinkage: ρ of a von Mises-Fisher prior of the
    components' means around the class's own direction m_c, which makes resultants r + ρ m_c; 0 is the paper's rule.
    score: "plugin" is the density at the estimated means; "predictive" integrates over the means that the counts leave possible,
    p(z | component) = C_d(κ) C_d(κ‖r‖) / C_d(‖κr + κz‖) in float64, which discounts components seen a few times.
    """

    def __init__(
        self, statistics: Statistics, kappa: float, classes: int, weights: str, score: str, shrinkage: float = 0.0
    ):
        self.kappa, self.score, self.classes = kappa, score, classes
        per_class = torch.bincount(statistics.classes, minlength=classes)
        size = per_class[statistics.classes]
        self.order = torch.argsort(size, stable=True)  # by count, then class
        shares = -size.double().log()
        if weights == "counts":
            total = torch.bincount(statistics.classes, statistics.counts, minlength=classes)
            shares = (statistics.counts / total[statistics.classes]).log()
        self.log_weights = shares[self.order].float()
        self.resultants = shrunk(statistics, classes, shrinkage)[self.order]
        self.lengths = self.resultants.norm(dim=1)
        self.means = F.normalize(self.resultants, dim=1).float()
        self.groups = [(int(n), int((per_class == n).sum())) for n in per_class.unique()]
        self.back = torch.argsort(torch.argsort(per_class, stable=True))

    def to(self, device: torch.device) -> "ComponentScores":
        """Move to where predictions are made."""
        for name in ("order", "log_weights", "resultants", "lengths", "means", "back"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def logits(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return s_ck of unit features (N, d), up to what all components share: (N, K), columns as in `order`."""
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


def shrunk(statistics: Statistics, classes: int, shrinkage: float) -> torch.Tensor:
    """Return resultants drawn towards their classes' directions, (K, d) float64; a class's is the mean of its components'."""
    if shrinkage == 0:
        return statistics.resultants
    own = torch.zeros(classes, statistics.resultants.shape[1], dtype=torch.float64)
    own = F.normalize(own.index_add(0, statistics.classes, statistics.means), dim=1)
    return statistics.resultants + shrinkage * own[statistics.classes]


class Judge(nn.Module):
    """What held-out samples told of each space, shrinkage and temperature, each judged before it was learnt.

    The space is chosen by balanced accuracy, shrinkage and temperature in it by the log-loss of labels, both summed over
    sessions. Densities of two spaces are not comparable; and exemplars of a memory are no judges: herding picks the easy ones.
    """

    def __init__(self, spaces: int, shrinkages: tuple[float, ...]):
        super().__init__()
        self.shrinkages = shrinkages
        for name, shape in (("losses", (spaces, len(shrinkages), len(TEMPERATURES))), ("right", (spaces,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shrinkage", torch.tensor(shrinkages[0], dtype=torch.float64))
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def hear(self, scores: list[list[torch.Tensor]], classes: torch.Tensor) -> list[float]:
        """Take class scores (N, C) of each space and shrinkage for held-out classes (N,); return the spaces' accuracies."""
        accuracies = []
        for space, tried in enumerate(scores):
            self.losses[space] += len(classes) * torch.stack([log_losses(each, classes) for each in tried])
            shrinkage, temperature = divmod(int(self.losses[space].argmin()), len(TEMPERATURES))
            accuracies.append(balanced_accuracy(tried[shrinkage].argmax(1), classes))
            self.right[space] += len(classes) * accuracies[-1]
            if self.right[space] >= self.right.max():  # of equals the last, the whitened one
                self.chosen.fill_(space)
                self.shrinkage.fill_(self.shrinkages[shrinkage])
                self.temperature.fill_(TEMPERATURES[temperature])
        return accuracies

    def merge(self, other: "Judge", share: float) -> None:
        """Add what another's samples told; its share of shrinkage and temperature."""
        self.losses += other.losses
        self.right += other.right
        self.shrinkage.lerp_(other.shrinkage, share)
        self.temperature.lerp_(other.temperature, share)


def log_losses(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the mean log-loss of classes (N,), each class weighing equally, under softmax(τ·scores) for each τ, (T,)."""
    weights = 1 / torch.bincount(classes, minlength=scores.shape[1]).clamp_min(1).float()
    return torch.stack([F.cross_entropy(scores * each, classes, weights) for each in TEMPERATURES.tolist()]).double()


def balanced_accuracy(predicted: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the mean over classes of the share predicted right."""
    sizes = torch.bincount(classes)
    right = torch.bincount(classes, (predicted == classes).double(), minlength=len(sizes))
    return float((right / sizes)[sizes > 0].mean())
