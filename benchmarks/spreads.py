"""A figure from several runs, with its bounds: medians with quartiles, means with deviations or intervals.

>>> f"{deviation([1.0, 2.0, 3.0]):.1f}"
'2.0 ± 1.0'
>>> f"{paired_ratio([1.0, 3.0, 2.0], [2.0, 2.0, 2.0]):.2f}"
'1.00 (0.75 to 1.25)'
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "quartiles": "median (quartiles)",
    "deviation": "mean ± standard deviation",
    "interval": "mean ± 95 % interval",
    "bootstrap": "mean (95 % bootstrap interval)",
}


@dataclass(frozen=True)
class Spread:
    """A figure of several runs, and its bounds; kind: a key of KINDS."""

    value: float
    low: float
    high: float
    count: int
    kind: str

    def __format__(self, spec: str) -> str:
        if self.count == 1:
            return format(self.value, spec)
        if self.kind in ("quartiles", "bootstrap"):
            return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"
        return f"{self.value:{spec}} ± {self.high - self.value:{spec.lstrip('+')}}"


def quartiles(values: Sequence[float]) -> Spread:
    """Return the median of values and their quartiles."""
    values = list(map(float, values))
    middle = statistics.median(values)
    low, high = (middle, middle)
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values), "quartiles")


def paired_ratio(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the median and quartiles of the ratios within each round."""
    return quartiles([value / other for value, other in zip(values, reference, strict=True)])


def deviation(values: Sequence[float]) -> Spread:
    """Return the mean of values and their standard deviation."""
    return _around_mean(values, 1.0, "deviation")


def interval(values: Sequence[float]) -> Spread:
    """Return the mean of values and its 95 % interval, by the normal distribution."""
    return _around_mean(values, 1.96 / math.sqrt(max(1, len(values))), "interval")


def _around_mean(values: Sequence[float], factor: float, kind: str) -> Spread:
    values = list(map(float, values))
    mean = statistics.fmean(values)
    half = factor * statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean, mean - half, mean + half, len(values), kind)
