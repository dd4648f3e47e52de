"""Edges with a gradient: what a picture's outlines are compared by while something learns. Shapes: B pictures of (C, H, W)."""

import math

import torch
from torch.nn import functional as F


def sobel_magnitude(images: torch.Tensor, epsilon: float = 1e-3) -> torch.Tensor:
    """Differentiable edge strength: (B, C, H, W) in [0, 1] -> (B, 1, H, W); a straight step from black to white gives 1.

    m = sqrt(mean over channels of gx² + gy², + ε²) - ε: zero, with zero gradient, where the picture is flat.

    >>> sobel_magnitude(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 1, 8, 8])
    """
    batch, channels, height, width = images.shape
    sobel = (
        torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=images.dtype, device=images.device)
        / 4
    )
    padded = F.pad(images.reshape(-1, 1, height, width), (1, 1, 1, 1), mode="replicate")
    gradients = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])
    energy = gradients.square().sum(1).reshape(batch, channels, height, width).mean(1, keepdim=True)
    return (energy + epsilon**2).sqrt() - epsilon


def canny_magnitude(
    images: torch.Tensor, sigma: float = 1.0, threshold: float = 0.1, softness: float = 0.02
) -> torch.Tensor:
    """Differentiable stand-in for Canny: (B, C, H, W) in [0, 1] -> (B, 1, H, W), edges not thinned.

    m·sigmoid((m - threshold) / softness) with m the Sobel magnitude of the blurred picture: what lies below the
    threshold fades, what lies above keeps its strength and so its gradient.
    """
    magnitude = sobel_magnitude(_gaussian_blur(images, sigma))
    return magnitude * torch.sigmoid((magnitude - threshold) / softness)


def _gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian cut at 3σ, borders repeated: (B, C, H, W) -> (B, C, H, W)."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    padded = F.pad(images.reshape(-1, 1, *images.shape[2:]), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None]).reshape(images.shape)
