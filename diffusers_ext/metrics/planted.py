"""Does a mixture find the modes that were planted? Recovered modes, κ and agreement, beside final accuracy."""

from typing import Any

import numpy as np

from ..data.planted import Planted
from ..data.sessions import build_sessions
from .incremental import evaluate_stream


def on_planted(learner: Any, halves: tuple[Planted, Planted, float], setting: str, seed: int) -> dict:
    """Run a learner over a planted stream, what `planted` returns; 5 groups of classes in NC and NCD.

    Returns the stream's measures, and for a mixture modes_per_class, kappa_ratio (estimated over planted) and rand_index:
    how components of training samples agree with their modes.
    """
    import torch

    train, test, kappa = halves
    features, labels, domains = (
        torch.cat([getattr(half, name) for half in (train, test)]) for name in ("features", "labels", "domains")
    )
    held = np.arange(len(features)) >= len(train.features)
    sessions = build_sessions(labels.numpy(), domains.numpy(), setting, 5, seed)
    found = evaluate_stream(learner, features, sessions, held)
    if hasattr(learner, "predict_component"):
        found["modes_per_class"] = found["components_per_class"][-1]
        found["kappa_ratio"] = learner.kappa_ / kappa
        found["rand_index"] = adjusted_rand_index(
            learner.predict_component(train.features, train.labels), train.modes.numpy()
        )
    return found


def adjusted_rand_index(first: np.ndarray, second: np.ndarray) -> float:
    """Return the agreement of two partitions (N,), 1 for equal ones and 0 on average for random ones (Hubert & Arabie 1985)."""
    _, rows = np.unique(first, return_inverse=True)
    _, columns = np.unique(second, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    together, of_rows, of_columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = of_rows * of_columns / pairs(np.array([len(first)]))
    most = (of_rows + of_columns) / 2
    return (together - expected) / (most - expected) if most != expected else 1.0
