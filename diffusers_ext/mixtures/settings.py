"""The settings of a classifier, checked before anything is built."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from .heads import HEADS
from .scores import SCORES
from .sums import SPACES

CHOICES = {
    "transform": tuple(SPACES),
    "estep": ("soft", "hard"),
    "reduction": ("evidence", "icl", "kl", "cosine"),
    "weights": ("uniform", "counts"),
    "score": tuple(SCORES),
    "head": tuple(HEADS),
}
LEAST = {"dim": 2, "memory": 0, "jury": 0, "seed": 0, "k_new": 1, "n_min": 1, "max_components": 1, "projections": 1}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError, naming the setting, for a value that is none of its own, and for settings that do not go together."""
    for name, choices in CHOICES.items():
        if settings[name] not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, got {settings[name]!r}")
    for name, least in LEAST.items():
        check_whole(name, settings[name], least)
    for name in ("alpha", "threshold", "shrinkage"):
        check_number(name, settings[name])
    if settings["alpha"] is None or settings["alpha"] == 0:
        raise InputError(f"alpha must be positive, got {settings['alpha']!r}")
    if settings["standardise"] not in (None, True, False):
        raise InputError(f"standardise must be True, False or None, got {settings['standardise']!r}")
    head = settings["head"]
    if head != "mixture" and settings["transform"] == "none":
        raise InputError(f'head "{head}" needs the covariance of transform "auto" or "whiten", and "none" has none')
    if not settings["jury"] and (settings["transform"] == "auto" or head == "auto"):
        raise InputError("without a jury nothing chooses: give transform and head, or a jury above 0")


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings that are numpy's numbers as Python's own, which a configuration can be written with."""
    return {name: value.item() for name, value in settings.items() if isinstance(value, np.generic)}


def kind_of(settings: Mapping[str, Any]) -> tuple:
    """Return what must agree for the sums of two classifiers to add up."""
    head = settings["head"]
    drawn = (settings["projections"], settings["seed"]) if head in ("ranpac", "pooled", "auto") else None
    return settings["dim"], settings["transform"], head, drawn


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise InputError unless a setting is a whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number, {least} or more, got {value!r}")


def check_number(name: str, value: Any) -> None:
    """Raise InputError unless a setting is None or a finite number, 0 or more."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be a number, 0 or more, got {value!r}")
