"""The von Mises-Fisher distribution: values, gradients, the inverse, estimates from few samples."""

import math

import numpy as np
import pytest
import torch

from diffusers_ext.mixtures.vmf import concentration, log_normalizer, mean_resultant_length, pooled_concentration
from diffusers_ext.randomness import generator
from diffusers_ext.streams.planted import sample

mpmath = pytest.importorskip("mpmath")  # torch brings it, through sympy


def exact(kappa: float, dim: int) -> float:
    with mpmath.workdps(60):
        order, kappa = mpmath.mpf(dim) / 2 - 1, mpmath.mpf(kappa)
        bessel = mpmath.besseli(order, kappa)
        return float(order * mpmath.log(kappa) - mpmath.mpf(dim) / 2 * mpmath.log(2 * mpmath.pi) - mpmath.log(bessel))


@pytest.mark.parametrize("dim", [3, 16, 64, 128, 512, 768, 1024])
def test_normaliser_against_60_digits(dim):
    """Check 1, from 1e-3 to 1e5."""
    for kappa in (1e-3, 0.1, 1.0, 10.0, 55.0, 300.0, 3e3, 1e5):
        assert abs(float(log_normalizer(torch.tensor(kappa, dtype=torch.float64), dim)) - exact(kappa, dim)) <= 1e-8


def test_normaliser_at_zero_is_the_sphere():
    for dim in (2, 3, 20, 64, 512):
        area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
        assert abs(float(log_normalizer(torch.zeros((), dtype=torch.float64), dim)) + area) < 1e-7


@pytest.mark.parametrize("dim", [8, 128, 512, 1024])
def test_ratio_lies_between_amos_bounds_and_inverts(dim):
    """Check 2."""
    kappa, order = torch.logspace(0, math.log10(3e4), 30, dtype=torch.float64), dim / 2 - 1
    ratio = mean_resultant_length(kappa, dim)
    assert (kappa / (order + 1 + (kappa**2 + (order + 1) ** 2).sqrt()) <= ratio + 1e-12).all()
    assert (ratio <= kappa / (order + (kappa**2 + (order + 2) ** 2).sqrt()) + 1e-12).all()
    error = ((concentration(ratio, dim) - kappa) / kappa).abs().max()
    assert error <= (1e-9 if dim >= 128 else 1e-3)


@pytest.mark.parametrize("dim", [8, 64])
def test_gradient_is_minus_the_ratio(dim):
    kappa = torch.tensor([0.5, 20.0, 700.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: log_normalizer(value, dim), kappa, eps=1e-4, atol=1e-6)
    log_normalizer(kappa, dim).sum().backward()
    assert torch.allclose(-kappa.grad, mean_resultant_length(kappa, dim))


@pytest.mark.parametrize("count", [4, 16, 256])
def test_kappa_from_few_samples(count):
    """Check 3: within 3 %, where ‖r‖/n would double it at four samples. Many components are pooled."""
    draw = generator(10, "kappa", count)
    components = max(20, 8000 // count)
    means = draw.standard_normal((components, 128))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    found = torch.from_numpy(sample(draw, np.repeat(means, count, 0), 55.0)).reshape(components, count, 128).sum(1)
    counts = torch.full((components,), float(count))
    assert abs(pooled_concentration(counts, found, 128) / 55 - 1) < 0.03
    if count == 4:
        assert float(concentration(found.norm(dim=1).mean() / count, 128)) > 100
    assert pooled_concentration(torch.ones(3), torch.eye(3), 3) is None
