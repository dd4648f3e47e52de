"""How well does a learner keep up with a stream? Accuracy over sessions, forgetting, the worst domain, cost.

a[t, j] is the accuracy after session t on the test cells that session j brought first, A_t that on all test cells seen so far.
Average incremental accuracy is the mean of A_t over t, final accuracy the last A_t, and forgetting the mean over j < T of
max_{t<T} a[t, j] − a[T, j]; the maximum leaves the last session out, so that forgetting is negative where learning helped old cells.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .sessions import Sessions

Predict = Callable[[np.ndarray], np.ndarray]  # rows -> labels, numbers of the sessions


class StreamState:
    """The measures of one learner on one stream so far: `test` after each session, `summary` at the end; JSON in between.

    test (N,) bool: the half that is never learnt. Accuracies are in percent. `rows` has a row per session, `matrix` a[t, j].
    """

    def __init__(self, sessions: Sessions, test: np.ndarray):
        self.sessions, self.held = sessions, test
        self.rows: list[dict] = []
        self.matrix: list[list[float | None]] = []
        self.arrived = np.full(len(test), -1)  # the session that brought a row's cell first
        self.right = np.zeros(len(test), bool)

    @property
    def done(self) -> int:
        return len(self.rows)

    def test(self, predict: Predict, components: Mapping | None = None) -> dict:
        """Measure after the next session; return its row. components: of each class, where the learner has them."""
        self._arrive(self.done)
        seen = (self.arrived >= 0).nonzero()[0]
        start = time.process_time()
        answers = predict(seen)
        spent = time.process_time() - start
        self.right[seen] = answers == self.sessions.labels[seen]
        self.matrix.append([self._accuracy(self.arrived == session) for session in range(self.done + 1)])
        row = {
            "step": self.done + 1,
            "accuracy": self._accuracy(self.arrived >= 0),
            "components": {str(label): count for label, count in (components or {}).items()},
            "tested": len(seen),
            "predict_seconds": spent,
        }
        self.rows.append(row)
        return row

    def summary(self) -> dict:
        """Average incremental and final accuracy, forgetting, domains, components and the cost of predicting."""
        seen, domains = self.arrived >= 0, self.sessions.domains
        of_domain = {int(each): self._accuracy(seen & (domains == each)) for each in np.unique(domains[seen])}
        cells = self.sessions.labels * (domains.max() + 1) + domains
        accuracy, tested = [row["accuracy"] for row in self.rows], sum(row["tested"] for row in self.rows)
        return {
            "average_incremental_accuracy": float(np.mean(accuracy)),
            "final_accuracy": accuracy[-1],
            "forgetting": forgetting(self.matrix),
            "worst_domain": min(each for each in of_domain.values() if each is not None),
            "cell_mean": float(np.mean([self._accuracy(seen & (cells == each)) for each in np.unique(cells[seen])])),
            "accuracy": accuracy,
            "matrix": self.matrix,
            "domain_accuracy": of_domain,
            "predict_microseconds": 1e6 * sum(row["predict_seconds"] for row in self.rows) / max(tested, 1),
            "components_per_class": [float(np.mean(list(r["components"].values()) or [0])) for r in self.rows],
        }

    def as_dict(self) -> dict:
        """What `restore` needs."""
        return {"rows": self.rows, "matrix": self.matrix, "right": self.right.nonzero()[0].tolist()}

    def restore(self, saved: dict) -> None:
        """Go on from what `as_dict` gave."""
        for session in range(len(saved["rows"])):
            self._arrive(session)
        self.rows, self.matrix = list(saved["rows"]), list(saved["matrix"])
        self.right[saved["right"]] = True

    def _arrive(self, session: int) -> None:
        rows = self.sessions.rows(session, self.held)
        self.arrived[rows] = session

    def _accuracy(self, chosen: np.ndarray) -> float | None:
        return 100 * float(self.right[chosen].mean()) if chosen.any() else None


def evaluate_stream(learner: Any, features: torch.Tensor, sessions: Sessions, test: np.ndarray) -> dict:
    """Feed the sessions to a learner with `partial_fit` and `predict`, test it after each, and return the summary.

    features (N, d) of all rows; test (N,) bool: the half that is never learnt. Labels are the numbers of the sessions. Adds
    stored_floats and fit_seconds, CPU seconds of this process.
    """
    state, spent = StreamState(sessions, test), 0.0
    for now in range(len(sessions)):
        rows = sessions.rows(now, ~test)
        start = time.process_time()
        if len(rows):
            learner.partial_fit(features[rows], torch.from_numpy(sessions.labels[rows]))
        spent += time.process_time() - start
        state.test(lambda rows: np.asarray(learner.predict(features[rows])), getattr(learner, "n_components_", None))
    return {**state.summary(), "stored_floats": int(learner.stored_floats), "fit_seconds": spent}


def forgetting(matrix: list[list[float | None]]) -> float:
    """Return the mean over sessions before the last of the best earlier accuracy minus the last; 0 for one session."""
    table = np.full((len(matrix), len(matrix)), np.nan)
    for session, row in enumerate(matrix):
        table[session, : len(row)] = [np.nan if value is None else value for value in row]
    last = len(matrix) - 1
    drops = [np.nanmax(table[:last, j]) - table[last, j] for j in range(last) if not np.isnan(table[last, j])]
    return float(np.mean(drops)) if drops else 0.0
