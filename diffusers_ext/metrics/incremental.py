"""How well does a learner keep up with a stream? Accuracy over sessions, forgetting, the worst domain, cost.

a[t, j] is the accuracy after session t on the test cells that session j brought first, A_t that on all test cells seen so far.
Average incremental accuracy is the mean of A_t over t, final accuracy the last A_t, and forgetting the mean over j < T of
max_{t<T} a[t, j] − a[T, j]; the maximum leaves the last session out, so that forgetting is negative where learning helped old cells.
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ..data.sessions import Sessions


@dataclass
class StreamResult:
    """What one learner did on one stream; accuracies in percent, times in CPU seconds of this process."""

    average_incremental_accuracy: float
    final_accuracy: float
    forgetting: float
    worst_domain: float
    cell_mean: float
    accuracy: list[float]
    matrix: list[list[float | None]]
    domain_accuracy: dict[int, float]
    stored_floats: int
    fit_seconds: float
    predict_microseconds: float
    components_per_class: list[float] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)


def evaluate_stream(learner: Any, features: torch.Tensor, sessions: Sessions, test: np.ndarray) -> StreamResult:
    """Feed the sessions to a learner with `partial_fit` and `predict`, and test it after each.

    features (N, d) of all rows; test (N,) bool: the half that is never learnt. Labels are the numbers of the sessions.
    """
    arrived = np.full(len(test), -1)  # the session that brought a row's cell first
    matrix = np.full((len(sessions), len(sessions)), np.nan)
    accuracy, components, spent, asked, predicted = [], [], 0.0, 0, 0.0
    for now in range(len(sessions)):
        rows = sessions.rows(now, ~test)
        start = time.process_time()
        learner.partial_fit(features[rows], torch.from_numpy(sessions.labels[rows]))
        spent += time.process_time() - start
        arrived[sessions.rows(now, test)] = now
        seen = (arrived >= 0).nonzero()[0]
        start = time.process_time()
        answer = np.asarray(learner.predict(features[seen]))
        predicted, asked = predicted + time.process_time() - start, asked + len(seen)
        right = np.full(len(test), np.nan)
        right[seen] = answer == sessions.labels[seen]
        accuracy.append(100 * float(np.nanmean(right)))
        for session in range(now + 1):
            if (arrived == session).any():
                matrix[now, session] = 100 * right[arrived == session].mean()
        if hasattr(learner, "n_components_"):
            components.append(float(np.mean(list(learner.n_components_.values()))))
    domains = {
        int(each): 100 * float(np.nanmean(right[sessions.domains == each]))
        for each in np.unique(sessions.domains[seen])
    }
    cells = sessions.labels * (sessions.domains.max() + 1) + sessions.domains
    return StreamResult(
        average_incremental_accuracy=float(np.mean(accuracy)),
        final_accuracy=accuracy[-1],
        forgetting=forgetting(matrix),
        worst_domain=min(domains.values()),
        cell_mean=100 * float(np.mean([right[seen][cells[seen] == each].mean() for each in np.unique(cells[seen])])),
        accuracy=accuracy,
        matrix=[[None if np.isnan(value) else float(value) for value in row] for row in matrix],
        domain_accuracy=domains,
        stored_floats=int(learner.stored_floats),
        fit_seconds=spent,
        predict_microseconds=1e6 * predicted / max(asked, 1),
        components_per_class=components,
    )


def forgetting(matrix: np.ndarray) -> float:
    """Return the mean over sessions before the last of the best earlier accuracy minus the last; 0 for one session."""
    last = len(matrix) - 1
    drops = [np.nanmax(matrix[:last, j]) - matrix[last, j] for j in range(last) if not np.isnan(matrix[last, j])]
    return float(np.mean(drops)) if drops else 0.0
