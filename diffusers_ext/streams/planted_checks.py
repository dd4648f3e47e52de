"""Does a mixture find the modes that were planted? Recovered modes, κ and agreement, beside final accuracy."""

from typing import Any

import numpy as np

from .baselines import NearestMean
from .measures import StreamState, evaluate_stream
from .planted import Planted
from .sessions import Sessions, build_sessions


def stream_of(halves: tuple[Planted, Planted, float], setting: str, seed: int) -> tuple[Sessions, np.ndarray]:
    """Return the sessions of a planted stream, both halves in a row, and which rows are tests, (N,) bool."""
    labels, domains = (
        np.concatenate([getattr(half, name).numpy() for half in halves[:2]]) for name in ("labels", "domains")
    )
    return build_sessions(labels, domains, setting, 5, seed), np.arange(len(labels)) >= len(halves[0].labels)


def oracle(halves: tuple[Planted, Planted, float], setting: str, seed: int) -> dict:
    """The measures of a learner that is told the mode of every sample it learns: the nearest mean of all modes seen so far.

    It loses what few samples say of a mean and what new classes take from old ones: nobody who is not told can be expected to do better.
    """
    import torch

    train, test, _ = halves
    features, modes = (torch.cat([getattr(half, name) for half in (train, test)]) for name in ("features", "modes"))
    sessions, held = stream_of(halves, setting, seed)
    owner = np.zeros(int(modes.max()) + 1, np.int64)
    owner[modes.numpy()] = sessions.labels
    learner, state = NearestMean(features.shape[1]), StreamState(sessions, held)
    for now in range(len(sessions)):
        rows = sessions.rows(now, ~held)
        learner.partial_fit(features[rows], modes[rows])
        state.test(lambda rows: owner[learner.predict(features[rows]).numpy()])
    return state.summary()


def on_planted(learner: Any, halves: tuple[Planted, Planted, float], setting: str, seed: int) -> dict:
    """Run a learner over a planted stream, what `planted` returns; 5 groups of classes in NC and NCD.

    Returns the stream's measures, and for a mixture modes_per_class, kappa_ratio (estimated over planted) and rand_index:
    how components of training samples agree with their modes.
    """
    import torch

    train, test, kappa = halves
    features = torch.cat([train.features, test.features])
    sessions, held = stream_of(halves, setting, seed)
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
