"""What a session may be given as: features and labels in the forms people have them, checked before anything is learnt."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.feature_arrays import as_matrix
from ..errors import InputError
from ..randomness import generator

Label = str | int | float | bool


def as_rows(features: Any, dim: int) -> torch.Tensor:
    """Return features as they are, (N, dim) float32 on the CPU; InputError for another shape or other than numbers."""
    values = as_matrix(features, rows=f"(N, {dim})")
    if not len(values):
        return values.new_zeros(0, dim)
    if values.shape[1] != dim:
        raise InputError(f"features have shape {tuple(values.shape)}; this classifier takes (N, {dim})")
    return values


def directions(values: torch.Tensor) -> torch.Tensor:
    """Return rows (N, D) scaled to unit length; InputError naming the first that has no direction."""
    lengths = torch.linalg.vector_norm(values, dim=1)
    if bool(((lengths > 1e-15) & (lengths < 1e15)).all()):
        return values / lengths[:, None]
    bad = ~values.isfinite().all(1)
    if bad.any():
        raise InputError(
            f"features, row {int(bad.nonzero()[0])}: not finite ({int(bad.sum())} such rows); leave them out"
        )
    # Scaled first, so that tiny and huge rows keep their direction.
    largest = values.abs().amax(1)
    if (largest == 0).any():
        zero = (largest == 0).nonzero()
        raise InputError(
            f"features, row {int(zero[0])}: a zero vector has no direction ({len(zero)} such rows); leave them out"
        )
    return F.normalize(values / largest[:, None], dim=1)


def as_labels(labels: Any) -> list[Label]:
    """Return labels as plain Python values of one type; InputError where they are not, or have no JSON form."""
    values = [value.item() if isinstance(value, np.generic) else value for value in _listed(labels)]
    values = [value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value for value in values]
    for row, value in enumerate(values):
        if isinstance(value, (list, tuple, np.ndarray, torch.Tensor)):
            raise InputError(f"labels, row {row}: {str(value)[:40]}; give one label per row, (N,), not a list of them")
        if not isinstance(value, (str, int, float)):
            raise InputError(f"labels, row {row}: {value!r}; labels are strings, integers, floats or booleans")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"labels, row {row}: {value!r}; a label is a name or a finite number")
    check_kind(values)
    return values


def _listed(labels: Any) -> list:
    """Return what labels are given as, as a list; a column (N, 1) is one label per row."""
    if labels is None or isinstance(labels, (str, bytes, dict, set, frozenset)):
        raise InputError(f"labels: {str(labels)[:40]!r}; give a list or an array with one label per row")
    values = labels.to_numpy() if hasattr(labels, "columns") else labels  # a data frame's list would be its columns
    if getattr(values, "ndim", 1) == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if getattr(values, "ndim", 1) != 1:
        raise InputError(
            f"labels have shape {tuple(values.shape)}; give one per row, (N,), such as labels.argmax(1) of one-hot rows"
        )
    try:
        return values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else list(values)
    except TypeError:
        raise InputError(f"labels: {labels!r}; give a list or an array with one label per row") from None


def check_kind(labels: Sequence[Label], known: Sequence[Label] = ()) -> None:
    """Raise InputError if labels are of several types: 1, 1.0, True and "1" are told apart by people, not by dictionaries."""
    kinds = {type(label).__name__ for label in labels} - {type(label).__name__ for label in known[:1]}
    if known and kinds:
        raise InputError(
            f"labels are of type {', '.join(sorted(kinds))}, those of earlier sessions {type(known[0]).__name__}; convert them"
        )
    if len(kinds) > 1:
        raise InputError(f"labels are of several types: {', '.join(sorted(kinds))}; convert them to one")


def number(labels: Any, count: int, known: list[Label]) -> tuple[torch.Tensor, list[Label]]:
    """Return the labels of `count` rows as places (N,) int64 in the list returned: the known ones, then new ones, sorted."""
    values = as_labels(labels)
    if len(values) != count:
        raise InputError(f"{count} rows of features and {len(values)} labels; give one label per row")
    check_kind(values, known)
    known = known + sorted(set(values) - set(known))
    place = {label: at for at, label in enumerate(known)}
    return torch.tensor([place[value] for value in values], dtype=torch.int64), known


def pack(labels: list[Label]) -> np.ndarray:
    """Return labels as an array of their own type."""
    return np.array(labels) if labels else np.empty(0, dtype=object)


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
