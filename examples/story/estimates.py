"""Numbers of run folders with intervals, and the sentences that these allow."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusers_ext.preferences.agreement import Ratio


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def mean(rows: Sequence[Sequence[float]]) -> Ratio:
    """The mean of values in groups, a list per prompt; its interval draws whole prompts again."""
    return Ratio(np.array([np.sum(row) for row in rows]), np.array([float(len(row)) for row in rows]))


def shown(ratio: Ratio, digits: int = 2, sign: bool = False) -> str:
    """1.23 [0.98, 1.41]"""
    form = f"{'+' if sign else ''}.{digits}f"
    low, high = ratio.interval()
    return f"{ratio.micro:{form}} [{low:{form}}, {high:{form}}]"


def verdict(ratio: Ratio, gain: str, loss: str, nothing: str) -> str:
    """Which of three sentences the interval allows."""
    low, high = ratio.interval()
    return gain if low > 0 else loss if high < 0 else nothing


def differences(these: Sequence[Sequence[float]], those: Sequence[Sequence[float]]) -> Ratio:
    return mean([np.subtract(one, other) for one, other in zip(these, those)])
