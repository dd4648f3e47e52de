"""What a session may be given as: features and labels in the forms people have them, checked before anything is learnt."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import InputError

Label = str | int | float | bool


def as_features(features: Any, dim: int) -> torch.Tensor:
    """Return features as unit vectors (N, dim) float32 on the CPU; InputError naming the first row that has no direction."""
    try:
        values = torch.as_tensor(features).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"features: no array of numbers ({error}); give (N, {dim})") from None
    if values.numel() == 0:
        return values.new_zeros(0, dim)
    if values.dim() != 2 or values.shape[1] != dim:
        raise InputError(f"features have shape {tuple(values.shape)}; this classifier takes (N, {dim})")
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
    values = labels.tolist() if isinstance(labels, (torch.Tensor, np.ndarray)) else list(labels)
    values = [value.item() if isinstance(value, (np.generic, torch.Tensor)) else value for value in values]
    for row, value in enumerate(values):
        if not isinstance(value, (str, int, float)) or value != value:
            raise InputError(f"labels, row {row}: {value!r}; labels are strings, integers, floats or booleans")
    check_kind(values)
    return values


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
    for number, (features, labels) in enumerate(batches):
        found.append(as_labels(labels))
        if len(features) != len(found[-1]):
            raise InputError(f"batch {number}: {len(features)} rows of features and {len(found[-1])} labels")
    return found


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
            yield as_features(features, dim), values, rows


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise InputError unless a setting has one of its values."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
