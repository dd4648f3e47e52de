"""The initial noise of pictures, and the geometry that a search moves in; `noise_search` has the equations."""

import math
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..diffusion.base import family_of
from ..diffusion.bases import network_of
from ..randomness import normal


def first_noise(pipe: Any, seed: int, count: int, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """Return the noise that a pipeline draws from generators seeded seed, seed + 1 ..: (count, c, h, w) float32.

    height, width: of the pictures, in pixels; default: those that the network was made for.
    """
    network = network_of(pipe)
    sample, scale = network.config.sample_size, pipe.vae_scale_factor
    sides = (sample, sample) if isinstance(sample, int) else tuple(sample)
    sides = (height // scale if height else sides[0], width // scale if width else sides[1])
    generators = [torch.Generator().manual_seed(seed + number) for number in range(count)]
    shape = (count, family_of(network).latent_channels(network.config), *sides)
    return randn_tensor(shape, generators, torch.device("cpu"), network.dtype).float()


def neighbours(pivot: torch.Tensor, count: int, radius: float, seed: int, number: int) -> torch.Tensor:
    """Return `count` noises at the distance radius·‖pivot‖ on the sphere of the pivot's norm; the module has the equation.

    pivot: (c, h, w) float32. number: of the round; with the seed it keys the directions.

    >>> pivot = torch.ones(4, 8, 8)
    >>> near = neighbours(pivot, count=2, radius=0.5, seed=0, number=0)
    >>> [round(float((noise - pivot).norm() / pivot.norm()), 4) for noise in near]
    [0.5, 0.5]
    """
    keys = [(number, neighbour) for neighbour in range(count)]
    directions = normal(seed, "noise-search", keys, pivot.shape).flatten(1)
    axis, norm = pivot.flatten() / pivot.norm(), pivot.norm()
    tangents = directions - (directions * axis).sum(1, keepdim=True) * axis
    tangents = tangents / tangents.norm(dim=1, keepdim=True)
    along, across = 1 - radius**2 / 2, math.sqrt(radius**2 - radius**4 / 4)
    return (norm * (along * axis + across * tangents)).view(count, *pivot.shape)


def log_density_of_norm(noise: torch.Tensor) -> torch.Tensor:
    """K(n) = (D − 1) log ‖n‖ − ‖n‖²/2, largest where the norm is sqrt(D − 1); D is the number of elements.

    >>> round(float(log_density_of_norm(torch.ones(4, 8, 8))), 2)
    579.01
    """
    norm = noise.norm()
    return (noise.numel() - 1) * norm.log() - norm.square() / 2
