"""How well a reward's scores agree with people's rankings, and people with each other.

Every measure is a ratio of sums over prompts, so that all have the same two averages and the same interval: prompts are
drawn again with replacement, whole, as pairs of one prompt are not independent.

    accuracy = preference_accuracy(scores, prompts)
    accuracy.micro, accuracy.interval()

Shapes: N prompts, K images of one; scores are N arrays of K numbers, higher is better; ranks K numbers, lower is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, spearmanr

from ..randomness import generator
from .rankings import RankedPrompt

Scores = Sequence[np.ndarray]


@dataclass(frozen=True)
class Ratio:
    """A measure as Σ numerators / Σ denominators; both (N,), one value per prompt."""

    numerators: np.ndarray
    denominators: np.ndarray

    @property
    def micro(self) -> float:
        """The average over pairs (or rankings): what the papers print. nan where there is none."""
        return _divide(self.numerators.sum(), self.denominators.sum())

    @property
    def macro(self) -> float:
        """The average over prompts of each prompt's own ratio, prompts without one left out."""
        some = self.denominators > 0
        return _divide((self.numerators[some] / self.denominators[some]).sum(), some.sum())

    def interval(self, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Return the percentile bootstrap interval of `micro` over prompts (Efron & Tibshirani 1993, chapter 13)."""
        count = len(self.numerators)
        drawn = generator(seed, "bootstrap").integers(count, size=(draws, count))
        with np.errstate(invalid="ignore"):
            values = self.numerators[drawn].sum(1) / self.denominators[drawn].sum(1)
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.micro:.4f} [{low:.4f}, {high:.4f}]"


def preference_accuracy(scores: Scores, prompts: Sequence[RankedPrompt]) -> Ratio:
    """Return the share of strict pairs whose winner scores higher; equal scores count as wrong, as in the official test."""
    _check(scores, prompts)
    pairs = [prompt.pairs() for prompt in prompts]
    right = [(score[each[:, 0]] > score[each[:, 1]]).sum() for score, each in zip(_arrays(scores), pairs)]
    return Ratio(np.array(right, float), np.array(list(map(len, pairs)), float))


def recall_at(k: int, scores: Scores, prompts: Sequence[RankedPrompt]) -> Ratio:
    """Return how often the image that people ranked best is among the k of highest score (Xu et al. 2023, table 3).

    Of several best images each counts in part, which keeps the chance level at k/K; images of equal score stand as low
    as their lowest.
    """
    return _found_at(k, scores, prompts, best=True)


def filter_at(k: int, scores: Scores, prompts: Sequence[RankedPrompt]) -> Ratio:
    """Return how often the image that people ranked worst is among the k of lowest score; details as `recall_at`."""
    return _found_at(k, scores, prompts, best=False)


def rank_correlation(kind: str, scores: Scores, prompts: Sequence[RankedPrompt]) -> Ratio:
    """Return the mean over rankings of a rank correlation with the scores, -1 to 1.

    kind: "spearman" (ρ of average ranks) or "kendall" (τ-b). Rankings that tie all images, and scores all equal, have
    none and are left out.
    """
    measure: Callable = {"spearman": spearmanr, "kendall": kendalltau}[kind]

    def correlate(score: np.ndarray, ranks: np.ndarray) -> float | None:
        if np.ptp(score) == 0 or np.ptp(ranks) == 0:
            return None
        return measure(score, -ranks).statistic

    return _over_rankings(scores, prompts, correlate)


@dataclass(frozen=True)
class Agreement:
    """How often people order the same two images of a prompt in the same way.

    same, total: (A, A), pairs ordered alike and pairs that both ordered strictly; the diagonal is zero.
    by_prompt: the same counts by prompt, over all pairs of people.
    """

    annotators: list[str]
    same: np.ndarray
    total: np.ndarray
    by_prompt: Ratio

    @property
    def matrix(self) -> np.ndarray:
        """The share of agreement of each two people, (A, A); nan where they have no pair in common."""
        with np.errstate(invalid="ignore"):
            return self.same / self.total

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960): which of two images is named first is arbitrary, so chance is one half."""
        return 2 * self.by_prompt.micro - 1

    def of_each(self) -> dict[str, float]:
        """Return each person's share of agreement with all others; nan for one who shares no pair with anybody."""
        shares = (_divide(same, total) for same, total in zip(self.same.sum(1), self.total.sum(1)))
        return dict(zip(self.annotators, shares))


def agreement(prompts: Sequence[RankedPrompt]) -> Agreement:
    """Compare the valid rankings of all people with each other; ties are left out (Xu et al. 2023, section 2.3).

    "name/2" and the like, the further rankings of one person for one prompt, count as that person's, and are not
    compared with their own.
    """
    people = sorted({person for prompt in prompts for person in prompt.people})
    place = {name: position for position, name in enumerate(people)}
    same, total = np.zeros((2, len(people), len(people)))
    by_prompt = np.zeros((2, len(prompts)))
    for index, prompt in enumerate(prompts):
        rows = [place[person] for person in prompt.people]
        if len(rows) < 2:
            continue
        ranks = np.array([ranking.ranking for ranking in prompt.valid], dtype=float)
        signs = np.nan_to_num(np.sign(ranks[:, :, None] - ranks[:, None, :])).reshape(len(rows), -1) / np.sqrt(2)
        both, net = np.abs(signs) @ np.abs(signs).T, signs @ signs.T  # each unordered pair stands twice, by half
        apart = np.not_equal.outer(rows, rows)
        alike, both = (both + net) / 2 * apart, both * apart
        np.add.at(same, np.ix_(rows, rows), alike)
        np.add.at(total, np.ix_(rows, rows), both)
        by_prompt[:, index] = alike.sum() / 2, both.sum() / 2
    return Agreement(people, same.round(), total.round(), Ratio(*by_prompt.round()))


def summary(scores: Scores, prompts: Sequence[RankedPrompt]) -> dict[str, float]:
    """Return accuracy with its interval, and the rank correlations: what a training writes to metrics.jsonl."""
    accuracy = preference_accuracy(scores, prompts)
    low, high = accuracy.interval(draws=500)
    correlations = {kind: rank_correlation(kind, scores, prompts).micro for kind in ("spearman", "kendall")}
    return {"accuracy": accuracy.micro, "accuracy_low": low, "accuracy_high": high, **correlations}


def _found_at(k: int, scores: Scores, prompts: Sequence[RankedPrompt], best: bool) -> Ratio:
    sign = 1 if best else -1

    def found(score: np.ndarray, ranks: np.ndarray) -> float:
        wanted = np.flatnonzero(sign * ranks == (sign * ranks).min())
        before = (sign * score[None, :] >= sign * score[wanted, None]).sum(1)  # itself among them
        return float((before <= k).mean())

    return _over_rankings(scores, prompts, found)


def _over_rankings(
    scores: Scores, prompts: Sequence[RankedPrompt], measure: Callable[[np.ndarray, np.ndarray], float | None]
) -> Ratio:
    """Sum a measure of (scores, ranks) over each prompt's valid rankings, on the images seen, where it is defined."""
    _check(scores, prompts)
    values = []
    for score, prompt in zip(_arrays(scores), prompts):
        ranks = [np.array(ranking.ranking, dtype=float) for ranking in prompt.valid]
        each = [measure(score[~np.isnan(rank)], rank[~np.isnan(rank)]) for rank in ranks]
        defined = [value for value in each if value is not None]
        values.append((sum(defined), len(defined)))
    return Ratio(*np.array(values, dtype=float).T)


def _arrays(scores: Scores) -> list[np.ndarray]:
    return [np.asarray(score, dtype=float) for score in scores]


def _check(scores: Scores, prompts: Sequence[RankedPrompt]) -> None:
    if len(scores) != len(prompts):
        raise ValueError(f"scores of {len(scores)} prompts for {len(prompts)} prompts")
    for score, prompt in zip(scores, prompts):
        if len(score) != len(prompt.images):
            raise ValueError(f"{prompt.id}: {len(score)} scores for {len(prompt.images)} images")


def _divide(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")
