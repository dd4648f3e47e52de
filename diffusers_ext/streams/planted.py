"""Streams whose truth is known: unit vectors of classes that come in several domains, with planted modes.

`indep200`: 50 classes x 4 domains, each mode a direction of its own. `sub400`: two modes in each cell of class and domain.
`indep600`: 100 classes x 6 domains. `shared`: a mode is the sum of a class's, a domain's and an own direction. `cone`: the
same with a large common offset and noise that a few directions dominate, so not von Mises-Fisher at all. `single`: one domain
and one mode a class. Training cells are of unequal size, tests are balanced.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..randomness import generator

DIM, TESTS = 128, 20  # dimensions; test samples of a cell
SIZES = {4: (60, 30, 15, 8), 6: (60, 40, 25, 15, 10, 8), 1: (60,)}  # training samples of a mode, by domain
KINDS = {  # classes, domains, modes of a cell, concentration
    "indep200": (50, 4, 1, 55.0),
    "sub400": (50, 4, 2, 65.0),
    "indep600": (100, 6, 1, 65.0),
    "shared": (50, 4, 1, 55.0),
    "cone": (50, 4, 1, 85.0),
    "single": (50, 1, 1, 55.0),
}


@dataclass
class Planted:
    """One half of a stream: features (N, d) float32 of unit length, and class, domain and mode of each, (N,) int64."""

    features: torch.Tensor
    labels: torch.Tensor
    domains: torch.Tensor
    modes: torch.Tensor


def planted(kind: str, seed: int) -> tuple[Planted, Planted, float]:
    """Return training half, test half and the planted κ."""
    classes, domains, split, kappa = KINDS[kind]
    draw = generator(seed, f"planted {kind}", 0)
    means = _means(kind, draw, classes, domains, split)
    order = np.stack([draw.permutation(domains) for _ in range(classes)])
    train = _draw(kind, draw, means, split * np.asarray(SIZES[domains])[order], kappa)
    test = _draw(kind, draw, means, np.full((classes, domains), TESTS), kappa)
    return train, test, kappa


def sample(draw: np.random.Generator, means: np.ndarray, kappa: float) -> np.ndarray:
    """Draw one unit vector around each row of means (N, d), by Wood's rejection (1994); float64."""
    count, dim = means.shape
    b = (dim - 1) / (2 * kappa + np.sqrt(4 * kappa**2 + (dim - 1) ** 2))
    x = (1 - b) / (1 + b)
    c = kappa * x + (dim - 1) * np.log(1 - x**2)
    along, left = np.empty(count), np.arange(count)
    while len(left):
        z = draw.beta((dim - 1) / 2, (dim - 1) / 2, len(left))
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        good = kappa * w + (dim - 1) * np.log(1 - x * w) - c >= np.log(draw.random(len(left)))
        along[left[good]] = w[good]
        left = left[~good]
    across = draw.standard_normal((count, dim))
    across = _unit(across - (across * means).sum(1, keepdims=True) * means)
    return along[:, None] * means + np.sqrt(1 - along[:, None] ** 2) * across


def _means(kind: str, draw: np.random.Generator, classes: int, domains: int, split: int) -> np.ndarray:
    """The directions of all modes, (classes, domains, split, d)."""
    own = _unit(draw.standard_normal((classes, domains, split, DIM)))
    if kind not in ("shared", "cone"):
        return own
    of_class = _unit(draw.standard_normal((classes, 1, 1, DIM)))
    of_domain = _unit(draw.standard_normal((1, domains, 1, DIM)))
    return _unit(0.7 * of_class + 0.7 * of_domain + 0.3 * own)


def _draw(kind: str, draw: np.random.Generator, means: np.ndarray, sizes: np.ndarray, kappa: float) -> Planted:
    classes, domains, split, _ = means.shape
    cell = np.repeat(np.arange(classes * domains), sizes.ravel())
    first = np.concatenate([[0], np.cumsum(sizes.ravel())[:-1]])
    mode = cell * split + (np.arange(len(cell)) - first[cell]) % split
    features = sample(draw, means.reshape(-1, DIM)[mode], kappa)
    if kind == "cone":
        features = features + _nuisance(draw, len(features))
    labels, domain = np.divmod(cell, domains)
    features = torch.from_numpy(_unit(features)).float()
    return Planted(features, *map(torch.from_numpy, (labels, domain, mode)))


def _nuisance(draw: np.random.Generator, count: int) -> np.ndarray:
    """A common offset, and noise of large variance in an eighth of the directions."""
    noise = np.zeros((count, DIM))
    noise[:, : DIM // 8] = 0.3 * draw.standard_normal((count, DIM // 8))
    return noise + np.eye(DIM)[-1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
