"""Which rows are kept aside to measure on: drawn by the seed, for files are often sorted."""

from typing import NamedTuple

import numpy as np

from ..randomness import generator


class HeldOut(NamedTuple):
    """Row numbers: those to learn from, in order, and those kept aside, in the order in which they were drawn."""

    learn: list[int]
    aside: list[int]


def hold_out(count: int, wanted: int, seed: int) -> HeldOut:
    """Keep `wanted` of `count` rows aside, and at most a tenth.

    >>> hold_out(count=20, wanted=16, seed=0).aside
    [8, 9]
    """
    order = drawn_order(count, seed)
    aside = min(wanted, count // 10)
    return HeldOut(sorted(map(int, order[aside:])), list(map(int, order[:aside])))


def drawn_order(count: int, seed: int) -> np.ndarray:
    """Return the order in which rows, or groups of them, are kept aside: a permutation of 0 .. count-1.

    >>> sorted(drawn_order(4, seed=0).tolist())
    [0, 1, 2, 3]
    """
    return generator(seed, "held_out").permutation(count)
