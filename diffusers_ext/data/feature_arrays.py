"""Feature tables in the forms people have them, read into one: rows of numbers, (N, D) float32 on the CPU.

Tensors of any device, arrays of any byte order and stride, data frames, lists of rows, columns of arrays. What holds no
plain numbers (complex, sparse, text, dates, masked values) is refused, with the row or column and the remedy.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError

NUMBERS = "biuf"  # numpy's kinds: booleans, integers, floating point


def as_matrix(features: Any, name: str = "features", rows: str = "(N, D)") -> torch.Tensor:
    """Return a feature table as (N, D) float32 on the CPU; an empty list becomes (0, 0).

    name, rows: what messages call the table, and the shape they ask for. Values are not checked: NaN stays NaN.
    Raises InputError for what is no table of real numbers.

    >>> as_matrix([[1, 2], [3, 4]]).dtype
    torch.float32
    """
    values = _tensor(features, name) if isinstance(features, torch.Tensor) else _from_array(features, name, rows)
    if values.dim() == 1 and not len(values):
        return values.new_zeros(0, 0)
    if values.dim() != 2:
        hint = "; for a single row give features[None]" if values.dim() == 1 else ""
        raise InputError(f"{name} have shape {tuple(values.shape)}; give {rows}{hint}")
    return values


def is_table(values: Any) -> bool:
    """Say whether values are meant as rows of numbers where pictures and paths may be given too.

    Raises InputError for one grey picture, (H, W) of integers: it could be either.

    >>> is_table(np.zeros((3, 8))), is_table(['a.png', 'b.png'])
    (True, False)
    """
    if hasattr(values, "tocsr") or hasattr(values, "columns"):
        return True
    shape, kind = getattr(values, "shape", None), str(getattr(values, "dtype", "object"))
    of_numbers = re.match(r"(torch\.)?(b?float|u?int|bool|complex)", kind, re.IGNORECASE)
    if shape is None or (not of_numbers and len(shape) == 1):  # a list, or a column of arrays or names
        listed = shape is not None or isinstance(values, (list, tuple))
        return listed and len(values) > 0 and _is_row(next(iter(values)))
    if len(shape) == 2 and re.match(r"(torch\.)?(u?int|bool)", kind):
        raise InputError(
            f"an array {tuple(shape)} of {kind}: a grey picture is Image.fromarray(array), embeddings are floating-point rows"
        )
    return len(shape) in (1, 2)


def _is_row(value: Any) -> bool:
    """Whether one of several values is a row of numbers, and no picture, path or name."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return len(shape) == 1
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (int, float))


def _tensor(values: torch.Tensor, name: str) -> torch.Tensor:
    if values.layout != torch.strided:
        raise InputError(f"{name}: a sparse tensor; give {name}.to_dense()")
    if values.is_complex():
        raise InputError(f"{name}: complex numbers; give real ones, such as their absolute values")
    if values.is_quantized:
        raise InputError(f"{name}: a quantised tensor; give {name}.dequantize()")
    if values.is_meta:
        raise InputError(f"{name}: a tensor on the device meta holds no numbers; give one of cpu")
    return values.detach().to("cpu", torch.float32)


def _from_array(features: Any, name: str, rows: str) -> torch.Tensor:
    array = _array(features, name, rows)
    if array.dtype.kind == "c":
        raise InputError(f"{name}: complex numbers; give real ones, such as their absolute values")
    if array.dtype.kind not in NUMBERS:
        raise InputError(f"{name}: values of type {array.dtype}, not numbers; give {rows}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the caller names by its row
        array = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _array(features: Any, name: str, rows: str) -> np.ndarray:
    """Return the values as a numpy array of numbers, of whatever type; objects are looked into."""
    if features is None or isinstance(features, (str, bytes, Mapping, set)):
        raise InputError(f"{name}: {type(features).__name__} is no table of numbers; give {rows}")
    if hasattr(features, "tocsr"):
        raise InputError(f"{name}: a sparse matrix; give {name}.toarray()")
    if isinstance(features, np.ma.MaskedArray) and np.ma.getmaskarray(features).any():
        raise InputError(f"{name}: {int(np.ma.getmaskarray(features).sum())} values are masked; fill or leave them out")
    columns = [str(column) for column in features.columns] if hasattr(features, "columns") else []
    if hasattr(features, "to_numpy"):
        array = features.to_numpy()
    elif hasattr(features, "__array__"):
        array = np.asarray(features)
    else:
        array = _stacked(_listed(features, name, rows), name)
    if array.dtype.kind != "O":
        return array
    if array.ndim == 1:  # a column of arrays
        return _stacked(list(array), name)
    return _plain(array, name, columns)


def _listed(features: Any, name: str, rows: str) -> list:
    try:
        return list(np.asarray(features) if isinstance(features, memoryview) else features)
    except TypeError:
        raise InputError(f"{name}: {type(features).__name__} is no table of numbers; give {rows}") from None


def _stacked(rows: Sequence[Any], name: str) -> np.ndarray:
    """Return rows of equal length as one array; InputError naming the first that has another."""
    arrays = [_row(row, number, name) for number, row in enumerate(rows)]
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise InputError(f"{name}, row {number}: shape {array.shape}, row 0 has {arrays[0].shape}; make them equal")
    return np.stack(arrays) if arrays else np.empty((0, 0), np.float32)


def _row(row: Any, number: int, name: str) -> np.ndarray:
    if isinstance(row, torch.Tensor):
        return _tensor(row, f"{name}, row {number}").numpy()
    try:
        array = np.asarray(row)
    except (TypeError, ValueError):
        raise InputError(f"{name}, row {number}: no row of numbers") from None
    if array.dtype.kind == "O":
        return _plain(array[None] if array.ndim == 1 else array, name, [], number).reshape(array.shape)
    if array.dtype.kind not in NUMBERS + "c":
        raise InputError(f"{name}, row {number}: {str(row)[:40]!r} is no row of numbers")
    return array


def _plain(array: np.ndarray, name: str, columns: Sequence[str], first: int = 0) -> np.ndarray:
    """Return an object array as float64; InputError naming the first cell that is no number."""
    try:
        if not any(isinstance(value, (str, bytes, complex)) for value in array.flat):
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    cells = ((place, value) for place, value in np.ndenumerate(array) if not _is_number(value))
    place, value = next(cells, ((0, 0), array))
    column = f", column {columns[place[1]] if columns else place[1]!r}" if array.ndim > 1 else ""
    raise InputError(f"{name}, row {first + place[0]}{column}: {str(value)[:40]!r} is no number; leave it out")


def _is_number(value: Any) -> bool:
    if isinstance(value, (str, bytes, complex)):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
