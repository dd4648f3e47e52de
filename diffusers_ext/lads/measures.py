"""Does a classifier reach domains it has no images of, and what do augmented embeddings look like?

Accuracies are in percent. "extended" is the mean of the accuracies in and out of domain, "extended_micro" that of all test
images together; the two differ where test sets do. A group is a class in a domain.

Shapes: N rows, K domains, C classes, D the width of the embeddings, all rows unit vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from scipy import stats

from .data import Embedded
from .domains import DomainText

ROWS = 4096  # compared at a time


def group_accuracy(predictions: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> dict[int, float]:
    """Return the accuracy of each group that occurs; predictions, labels and groups are (N,)."""
    right = (predictions == labels).double()
    return {int(group): 100 * right[groups == group].mean().item() for group in groups.unique()}


def extension(predictions: Mapping[str, torch.Tensor], tests: Mapping[str, Embedded]) -> dict[str, float]:
    """Measure predictions (N,) on each test set, of which the first is the one in domain.

    Returns the accuracy of each, "out_of_domain" (the mean over domains), "extended", "extended_micro", and "worst_group"; of
    a single test set only its accuracy and worst group.
    """
    rows = {name: 100 * (predictions[name] == test.labels).double().mean().item() for name, test in tests.items()}
    inside, *outside = rows.values()
    counts = [len(test) for test in tests.values()]
    micro = sum(value * count for value, count in zip(rows.values(), counts)) / sum(counts)
    worst = min(min(_groups(predictions[name], test).values()) for name, test in tests.items())
    if not outside:
        return {**rows, "worst_group": worst}
    out = fmean(outside)
    return {**rows, "out_of_domain": out, "extended": (inside + out) / 2, "extended_micro": micro, "worst_group": worst}


def _groups(predictions: torch.Tensor, test: Embedded) -> dict[int, float]:
    return group_accuracy(predictions, test.labels, test.domains * len(test.classes) + test.labels)


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds, its 95 % interval, and the p-value of the paired t-test."""

    mean: float
    low: float
    high: float
    p: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compare two methods seed by seed (two at least); p is 1 where all differences are 0 and 0 where all are one other.

    >>> paired([81.0, 82.0, 83.0], [80.0, 80.5, 81.0]).mean
    1.5
    """
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, spread = fmean(each), stdev(each)
    if spread < 1e-12:
        return Difference(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0)
    half = stats.t.ppf(0.975, len(each) - 1) * spread / len(each) ** 0.5
    return Difference(mean, mean - half, mean + half, float(stats.ttest_rel(ours, theirs).pvalue))


def nearest(x: torch.Tensor, among: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosine and position of each row's nearest neighbour: (N, D), (M, D) -> (N,), (N,)."""
    found = [(rows @ among.T).max(-1) for rows in x.split(ROWS)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def neighbour_metrics(
    x: torch.Tensor, labels: torch.Tensor, domains: torch.Tensor, reference: Embedded
) -> dict[str, float]:
    """Look up augmented rows among real images of all domains, for analysis only, as the official code does.

    x (N, D), labels (N,) and the domains (N,) that were meant. Returns percentages of nearest neighbours of that domain and
    of that class, the share of different neighbours, and the mean cosine.
    """
    cosines, found = nearest(x, reference.x)
    return {
        "domain_consistency": 100 * (reference.domains[found] == domains).double().mean().item(),
        "class_consistency": 100 * (reference.labels[found] == labels).double().mean().item(),
        "unique_neighbours": len(found.unique()) / len(found),
        "mean_cosine": cosines.mean().item(),
    }


def diagnostics(train: Embedded, moved: torch.Tensor, text: DomainText, wanted: torch.Tensor) -> dict[str, float]:
    """Describe what one network makes of the training images, without any target image.

    moved (N, D); wanted (N,): each row's domain to be, a position in text.domains. Returns
    domain_consistency: percent that are nearer to the text of their class in the wanted domain than in any other;
    class_consistency: percent whose class text still is their own; class_consistency_before: the same of the originals;
    drift: the mean cosine with the original; own_neighbour: percent whose nearest original is their own;
    unique_neighbours: the share of originals among the nearest;
    within_class, within_class_before: the mean cosine of two images of a class, after and before. Near 1, a class has
    collapsed to one vector, and augmentation adds C rows, not N.
    """
    said = text.domains[:, train.labels]  # (domains, N, D)
    consistent = (said * moved).sum(-1).argmax(0) == wanted
    right = [((rows @ text.classes.T).argmax(-1) == train.labels).double().mean().item() for rows in (moved, train.x)]
    _, found = nearest(moved, train.x)
    return {
        "domain_consistency": 100 * consistent.double().mean().item(),
        "class_consistency": 100 * right[0],
        "class_consistency_before": 100 * right[1],
        "drift": (train.x * moved).sum(-1).mean().item(),
        "own_neighbour": 100 * (found == torch.arange(len(found), device=found.device)).double().mean().item(),
        "unique_neighbours": len(found.unique()) / len(found),
        "within_class": within_class_cosine(moved, train.labels),
        "within_class_before": within_class_cosine(train.x, train.labels),
    }


def within_class_cosine(x: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean over classes of the mean cosine of two different images of the class; x (N, D) unit rows."""
    means = []
    for label in labels.unique():
        rows = x[labels == label].double()
        if len(rows) > 1:
            # Σ_{i≠j} x_i·x_j = ‖Σ x_i‖² − n, without the pairs.
            means.append(((rows.sum(0).square().sum() - len(rows)) / (len(rows) * (len(rows) - 1))).item())
    return fmean(means) if means else float("nan")
