"""Classes of unequal size side by side: rows of one class next to each other, padded within blocks of similar size.

A block is a batch of classes of which the largest has at most twice the rows of the smallest, so that padding at most doubles the work,
and so that the number of Python steps grows with the logarithm of the sizes, not with the number of classes.
"""

from collections.abc import Iterator

import numpy as np
import torch

CELLS = 1 << 20  # rows and padding of a block; bounds its memory


def blocks(classes: torch.Tensor, cells: int = CELLS) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (class of each block row (C,), rows (C, n)) for rows of classes (N,); rows is -1 where there is none.

    Rows of a class stand in their order.
    """
    order = torch.argsort(classes, stable=True).cpu().numpy()
    present, first, sizes = np.unique(classes.cpu().numpy()[order], return_index=True, return_counts=True)
    by_size = np.argsort(sizes, kind="stable")
    start = 0
    while start < len(by_size):
        limit = 2 * sizes[by_size[start]]
        stop = start + 1
        while (
            stop < len(by_size) and sizes[by_size[stop]] <= limit and (stop + 1 - start) * sizes[by_size[stop]] <= cells
        ):
            stop += 1
        chosen = by_size[start:stop]
        yield torch.from_numpy(present[chosen]), torch.from_numpy(_padded(order, first[chosen], sizes[chosen]))
        start = stop


def _padded(order: np.ndarray, first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    column = np.arange(sizes.max())[None]
    inside = column < sizes[:, None]
    return np.where(inside, order[np.where(inside, first[:, None] + column, 0)], -1)


def rows_of(classes: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the rows of each wanted class, (C, k), -1 where there is none; classes (K,) is sorted."""
    first = torch.searchsorted(classes, wanted)
    counts = torch.searchsorted(classes, wanted, right=True) - first
    column = torch.arange(int(counts.max()) if len(counts) else 0)[None]
    return torch.where(column < counts[:, None], first[:, None] + column, -1)


def gather(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return values[rows] with zeros where a row is -1."""
    missing = rows < 0
    taken = values[rows.clamp_min(0)] if len(values) else values.new_zeros(*rows.shape, *values.shape[1:])
    if not missing.any():
        return taken
    return taken.masked_fill(missing.reshape(missing.shape + (1,) * (taken.dim() - missing.dim())), 0)
