"""What a session may be given as: features and labels in the forms people have them, checked before anything is learnt."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.feature_arrays import as_matrix
from ..errors import InputError

Label = str | int | float | bool


def as_rows(features: Any, dim: int) -> torch.Tensor:
    """Return features as they are, (N, dim) float32 on the CPU; InputError for another shape or other than numbers.

    >>> as_rows([[1, 2], [3, 4]], dim=2).shape
    torch.Size([2, 2])
    """
    values = as_matrix(features, rows=f"(N, {dim})")
    if not len(values):
        return values.new_zeros(0, dim)
    if values.shape[1] != dim:
        raise InputError(f"features have shape {tuple(values.shape)}; this classifier takes (N, {dim})")
    return values


def directions(values: torch.Tensor) -> torch.Tensor:
    """Return rows (N, D) scaled to unit length; InputError naming the first that has no direction.

    >>> directions(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
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
    """Return labels as plain Python values of one type; InputError where they are not, or have no JSON form.

    >>> as_labels(np.array(['cat', 'dog']))
    ['cat', 'dog']
    """
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
    """Return the labels of `count` rows as places (N,) int64 in the list returned: the known ones, then new ones, sorted.

    >>> places, known = number(['dog', 'cat'], 2, ['bird'])
    >>> places.tolist(), known
    ([2, 1], ['bird', 'cat', 'dog'])
    """
    values = as_labels(labels)
    if len(values) != count:
        raise InputError(f"{count} rows of features and {len(values)} labels; give one label per row")
    check_kind(values, known)
    known = known + sorted(set(values) - set(known))
    place = {label: index for index, label in enumerate(known)}
    return torch.tensor([place[value] for value in values], dtype=torch.int64), known


def pack(labels: list[Label]) -> np.ndarray:
    """Return labels as an array of their own type.

    >>> pack(['cat', 'dog'])
    array(['cat', 'dog'], dtype='<U3')
    """
    return np.array(labels) if labels else np.empty(0, dtype=object)


def share_right(predicted: list[Label], labels: Any, known: Sequence[Label]) -> float:
    """Return the share of rows whose prediction is their label, 0 to 1; known: the classes, for the labels' type."""
    wanted = as_labels(labels)
    if len(predicted) != len(wanted) or not wanted:
        raise InputError(f"score: {len(predicted)} rows of features and {len(wanted)} labels; give one label per row")
    check_kind(wanted, known)
    return sum(map(operator.eq, predicted, wanted)) / len(wanted)
