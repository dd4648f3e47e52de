"""Does a picture obey its condition? Extract the condition from the picture again, and compare the two.

Works for any condition that a function can extract, with no ground truth beside the condition itself. What the true
pictures score (the oracle) is the ceiling, what pictures drawn without control score is chance.

Shapes: N pictures, C channels of a condition, H, W the size of both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from .. import randomness
from ..data.files import MASKED
from ..data.tensors import as_tensor, as_uint8

TOLERANCE = 0.0075  # of the diagonal: the distance at which BSDS still matches two edges (Martin et al. 2004)


def condition_consistency(
    images: Any,
    conditions: Any,
    extractor: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    keys: Sequence[randomness.Key] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Score how well pictures agree with their conditions: (N,) float64, 1 where they agree fully.

    A grey condition of zeros and ones only, such as canny's or a scribble, is scored by `edge_agreement`, 0 to 1; any other
    by `value_agreement`, -1 to 1. Nothing is learned and nothing is drawn at random, so a score is a function of its
    arguments.

    Args:
        images: N pictures: PIL images, (N, H, W, 3) arrays or (N, 3, H, W) tensors, uint8 in 0..255 or float in 0..1.
        conditions: N conditions, (C, H, W) float tensors in [0, 1], -1 where masked, as data sets give them.
        extractor: extractor(image, draw) -> condition, as in `conditions`; `conditions.resolve` finds one by name.
        keys, seed: what the given conditions were drawn with: the extractor gets the same thresholds and masks. Without
            keys every picture gets those of the key (0, 0).

    Raises ValueError if counts, sizes or channels differ, InputError if the extractor returns no condition.
    """
    pictures = as_uint8(images)
    keys = [(0, 0)] * len(pictures) if keys is None else keys
    if not len(pictures) == len(conditions) == len(keys):
        raise ValueError(f"{len(pictures)} images, {len(conditions)} conditions and {len(keys)} keys; give one each")
    scores = []
    for position, (picture, condition, key) in enumerate(zip(pictures, conditions, keys)):
        found = as_tensor(extractor(picture, randomness.generator(seed, "condition", *key))).numpy()
        wanted = np.asarray(condition, dtype=np.float32)
        if found.shape != wanted.shape:
            raise ValueError(
                f"image {position}: the extractor gives {found.shape} where the condition is {wanted.shape}; "
                "both need the same channels, height and width"
            )
        scores.append(agreement(found, wanted))
    return np.array(scores)


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Compare two conditions (C, H, W), by edges where `wanted` is a grey map of zeros and ones, else by values.

    What `wanted` marks with -1 does not count.
    """
    if np.isin(wanted, (0, 1, MASKED)).all() and (wanted == wanted[:1]).all():
        return edge_agreement((found > 0.5).any(0) & (wanted[0] != MASKED), wanted[0] == 1)
    return value_agreement(found, wanted)


def edge_agreement(found: np.ndarray, wanted: np.ndarray, tolerance: float | None = None) -> float:
    """Return F = 2PR / (P + R) of two edge maps, (H, W) bool; 1 where both are empty, 0 where one is.

    P is the share of found pixels that lie within `tolerance` pixels of a wanted one, R the reverse: the boundary measure
    of Perazzi et al. (2016, DAVIS, section 5.1). tolerance: at least one pixel, and 0.0075 of the diagonal by default.
    """
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    if tolerance is None:
        tolerance = max(1.0, TOLERANCE * np.hypot(*wanted.shape))
    precision = (distance_transform_edt(~wanted)[found] <= tolerance).mean()
    recall = (distance_transform_edt(~found)[wanted] <= tolerance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def value_agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the concordance of two maps of equal shape, over all values that neither marks with -1: -1 to 1.

    2 cov(x, y) / (var x + var y + (mean x - mean y)²) (Lin 1989): a correlation that is 1 only where x = y, so that a
    palette in other colours and a softer edge both cost. 0 where one map is constant and the other is not, 1 where
    both are and equal, and where nothing is left to compare.
    """
    seen = (found >= 0) & (wanted >= 0)
    x, y = found[seen].astype(np.float64), wanted[seen].astype(np.float64)
    if np.array_equal(x, y):
        return 1.0
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread)
