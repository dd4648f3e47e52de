"""The von Mises-Fisher distribution on the unit sphere of R^d: normaliser, mean resultant length, its inverse.

The density of direction z around mean μ is C_d(κ)·exp(κ μᵀz), with ln C_d(κ) = ν ln κ − (d/2) ln 2π − ln I_ν(κ), ν = d/2 − 1.
A Bessel function of large order underflows in every library (scipy's `ive` is 0 at d = 512, κ = 10), and single precision is
too coarse for differences of ln C_d, so everything here is float64 and, from d = 32 on, the uniform expansion of
I_ν in its order (Olver; Abramowitz & Stegun 9.7.7). Its κ^ν cancels, so that values and gradients are smooth through κ = 0.
"""

import math

import torch
from scipy.special import ive

SMALL = 32  # below this dimension `ive` never underflows, and the expansion is worse than 1e-6
LENGTHS = (1e-6, 1 - 1e-9)  # mean resultant lengths that are inverted


def log_normalizer(kappa: torch.Tensor, dim: int) -> torch.Tensor:
    """Return ln C_d(κ), float64 of κ's shape; differentiable. κ ≥ 0; error below 1e-8 for d ≥ 64 and κ up to 1e5.

    >>> round(float(log_normalizer(torch.tensor(1.0), 3)), 4)
    -2.6925
    """
    kappa = kappa.double()
    if dim < SMALL:
        return _LogNormalizer.apply(kappa, dim)
    order = dim / 2 - 1
    root = torch.sqrt(order**2 + kappa**2)
    p = order / root
    q = p * p
    series = 1 + p * (3 - 5 * q) / (24 * order)
    series = series + q * (81 + q * (-462 + 385 * q)) / (1152 * order**2)
    series = series + p * q * (30375 + q * (-369603 + q * (765765 - 425425 * q))) / (414720 * order**3)
    fourth = 4465125 + q * (-94121676 + q * (349922430 + q * (-446185740 + 185910725 * q)))
    series = series + q * q * fourth / (39813120 * order**4)
    flat = order * torch.log(order + root) + 0.5 * torch.log(2 * math.pi * root)
    return flat - root - torch.log(series) - dim / 2 * math.log(2 * math.pi)


def mean_resultant_length(kappa: torch.Tensor, dim: int) -> torch.Tensor:
    """Return A_d(κ) = I_{d/2}(κ) / I_{d/2−1}(κ) = −d ln C_d/dκ, the length of the mean of unit vectors; float64.

    >>> round(float(mean_resultant_length(torch.tensor(10.0), 3)), 4)
    0.9
    """
    if dim < SMALL:
        return _ratio(kappa.detach().double(), dim)
    with torch.enable_grad():
        leaf = kappa.detach().double().requires_grad_(True)
        (slope,) = torch.autograd.grad(log_normalizer(leaf, dim).sum(), leaf)
    return -slope


def concentration(length: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the κ of a mean resultant length, the inverse of A_d; float64.

    Banerjee et al. 2005 (equation 4.4) for a start, then two Newton steps with A' = 1 − A² − (d−1)A/κ (Sra 2012). Lengths
    are clipped to [1e-6, 1 − 1e-9].

    >>> round(float(concentration(torch.tensor(0.9), 3)), 3)
    10.0
    """
    length = length.double().clamp(*LENGTHS)
    kappa = length * (dim - length**2) / (1 - length**2)
    for _ in range(2):
        at = mean_resultant_length(kappa, dim)
        slope = 1 - at**2 - (dim - 1) * at / kappa
        # Close to length 1 the slope is lost to rounding, and the start is exact there.
        step = torch.where(slope > 1e-12, (at - length) / slope, torch.zeros_like(at))
        kappa = (kappa - step).clamp_min(1e-12)
    return kappa


def pooled_concentration(counts: torch.Tensor, resultants: torch.Tensor, dim: int) -> float | None:
    """Return one κ for many components, from counts (K,) and resultants (K, d); None if no component has two samples.

    A² is the mean cosine of two different samples of a component, Σ(‖r‖² − n) / Σ n(n−1): unlike ‖r‖/n, noise does not
    raise it where n is small.
    """
    several = counts > 1
    counts, resultants = counts[several].double(), resultants[several].double()
    pairs = (counts * (counts - 1)).sum()
    if pairs <= 0:
        return None
    square = (resultants.square().sum(1) - counts).sum() / pairs
    return float(concentration(square.clamp_min(0).sqrt(), dim))


class _LogNormalizer(torch.autograd.Function):
    """ln C_d of small dimensions through scipy's exponentially scaled Bessel function, with −A_d as its gradient."""

    @staticmethod
    def forward(context, kappa: torch.Tensor, dim: int) -> torch.Tensor:
        context.save_for_backward(kappa)
        context.dim = dim
        order, safe = dim / 2 - 1, kappa.clamp_min(1e-9)  # C_d is flat there, to 1e-18
        return order * safe.log() - dim / 2 * math.log(2 * math.pi) - _ive(order, safe).log() - safe

    @staticmethod
    def backward(context, above: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kappa,) = context.saved_tensors
        return -above * _ratio(kappa, context.dim), None


def _ratio(kappa: torch.Tensor, dim: int) -> torch.Tensor:
    safe = kappa.clamp_min(1e-9)
    return _ive(dim / 2, safe) / _ive(dim / 2 - 1, safe)


def _ive(order: float, kappa: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(ive(order, kappa.detach().cpu().numpy()), dtype=torch.float64, device=kappa.device)
