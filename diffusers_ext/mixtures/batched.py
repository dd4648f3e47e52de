"""A session that does not fit in memory: batches of features and labels, read once for their labels and then as needed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..randomness import generator
from .inputs import Label, as_labels, as_rows, directions

SAMPLE = 1024  # rows of a class on which a session in batches is expanded

Batches = Iterable[tuple[Any, Any]]


class Part(NamedTuple):
    """Rows of features (N, dim), and their labels."""

    rows: torch.Tensor
    labels: list[Label]


class BatchedSession:
    """Batches of (features, labels) that can be read several times. Up to SAMPLE rows of a class, drawn by the seed, are its sample.

    Raises InputError for what is no such thing, and, while it is read, where batches come in another order than before.

    >>> session = BatchedSession([(np.eye(2), ['cat', 'dog'])] * 2, dim=2, seed=0, session=0)
    >>> dict(session.sizes), session.sample().rows.shape
    ({'cat': 2, 'dog': 2}, torch.Size([4, 2]))
    """

    def __init__(self, batches: Batches, dim: int, seed: int, session: int):
        check_rereadable(batches)
        self.batches, self.dim, self.order = batches, dim, labels_of_batches(batches)
        self.sizes = Counter(label for labels in self.order for label in labels)
        self.kept = draw_rows(self.sizes, SAMPLE, seed, session)

    def sample(self) -> Part:
        """Read the sample; all rows where no class has more."""
        parts = list(self._read(others=False))
        return Part(torch.cat([part.rows for part in parts]), [label for part in parts for label in part.labels])

    def others(self) -> Iterator[Part]:
        """Read what is not in the sample, batch by batch."""
        if any(size > SAMPLE for size in self.sizes.values()):
            yield from self._read(others=True)

    def _read(self, others: bool) -> Iterator[Part]:
        for features, labels, rows in rows_of_batches(self.batches, self.dim, self.order, self.kept, others):
            yield Part(features[rows], [labels[row] for row in rows])


def check_rereadable(batches: Any) -> None:
    """Raise InputError unless batches can be read several times."""
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, Mapping)):
        raise InputError(f"batches: a {type(batches).__name__}; give a list of (features, labels), or a DataLoader")
    if iter(batches) is batches:
        raise InputError("batches are read several times: give a list or a DataLoader instead of an iterator")


def labels_of_batches(batches: Iterable[tuple[Any, Any]]) -> list[list[Label]]:
    """Read batches of (features, labels) once for their labels; InputError where a batch's two do not match."""
    found = []
    for number, batch in enumerate(batches):
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise InputError(f"batch {number}: a {type(batch).__name__}; give batches (features, labels)")
        features, labels = batch
        found.append(as_labels(labels))
        if not hasattr(features, "__len__"):
            raise InputError(f"batch {number}: features of type {type(features).__name__}; give rows (N, dim)")
        if len(features) != len(found[-1]):
            raise InputError(f"batch {number}: {len(features)} rows of features and {len(found[-1])} labels")
    return found


def draw_rows(sizes: Mapping[Label, int], most: int, seed: int, session: int) -> dict[Label, np.ndarray]:
    """Draw up to `most` of the samples of each label, whose number is given."""
    draws = {label: generator(seed, f"batches {label}", session) for label in sizes}
    return {label: draws[label].permutation(size)[:most] for label, size in sizes.items()}


def rows_of_batches(
    batches: Iterable[tuple[Any, Any]],
    dim: int,
    order: list[list[Label]],
    kept: dict[Label, np.ndarray],
    others: bool = False,
) -> Iterator[tuple[torch.Tensor, list[Label], list[int]]]:
    """Yield features, labels and the wanted rows of each batch.

    order: what `labels_of_batches` found; InputError where batches come otherwise now. kept: of each label, which of its
    samples are wanted, counted through all batches; with `others`, which are not.
    """
    chosen, seen = {label: set(rows.tolist()) for label, rows in kept.items()}, dict.fromkeys(kept, 0)
    for number, (features, labels) in enumerate(batches):
        rows, values = [], as_labels(labels)
        if number >= len(order) or values != order[number]:
            raise InputError(
                f"batch {number} has other labels than when read before; give a DataLoader with shuffle=False"
            )
        for row, label in enumerate(values):
            if (seen[label] in chosen[label]) != others:
                rows.append(row)
            seen[label] += 1
        if rows:
            found = as_rows(features, dim)
            directions(found)  # refused before anything is learnt
            yield found, values, rows
