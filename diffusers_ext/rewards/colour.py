"""fill50k's colours as a reward: exact, and a soft one with gradients whose only optimum is the exact one.

    exact  r = -(ΔE00(circle) + ΔE00(background)) / 2           CIEDE2000 of the regions' median colours, 0 is perfect
    soft   r = -(mean of ΔE(x) over the circle + mean over the background) / 2

ΔE in the soft reward is CIELAB distance, sqrt(|x - c|² + 1) - 1 per pixel: CIEDE2000 has kinks that a gradient should
not meet. Both find the circle in the picture itself (`toy.measures`). That region does not change under a small
change of the picture, so the soft gradient is the true one wherever the region holds still. Where no circle can be
seen there is no region to pull towards its colour: the exact reward still scores it, the soft one leaves that term constant.
"""

import numpy as np
import torch
from scipy.ndimage import binary_erosion

from ..toy.circles import parse_prompt
from ..toy.measures import colour_error, find_circle
from .interface import Reward
from .reward_inputs import InputError, read_rgb

MISSING = 100.0  # ΔE of a circle that is not there: about the distance of black and white
XYZ = torch.tensor(  # sRGB (IEC 61966-2-1) to XYZ, rows divided by the white point D65
    [
        [0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047],
        [0.212671, 0.715160, 0.072169],
        [0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883],
    ]
)


class ColourReward(Reward):
    """Exact colours of circle and background against the prompt's, minus CIEDE2000; no gradient."""

    differentiable = False

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        _check(prompts)
        # One at a time: pictures may be of different sizes.
        errors = [np.stack(colour_error([array(image)], [prompt])) for prompt, image in zip(prompts, images)]
        return -torch.from_numpy(np.concatenate(errors, axis=1).mean(0)).float()


class SoftColourReward(Reward):
    """Mean colour distance of circle and background to the prompt's, with a gradient at every pixel of both."""

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        _check(prompts)
        return torch.stack([self._one(prompt, image) for prompt, image in zip(prompts, images)])

    def _one(self, prompt: str, image) -> torch.Tensor:
        picture = image if isinstance(image, torch.Tensor) else torch.from_numpy(array(image)).permute(2, 0, 1)
        picture = picture / 255 if picture.dtype == torch.uint8 else picture.float()
        found = find_circle(array(image))
        regions = (binary_erosion(found), binary_erosion(~found, border_value=1))  # the edge belongs to neither
        colours = torch.tensor(parse_prompt(prompt), device=picture.device) / 255
        distances = []
        for region, colour in zip(regions, colours):
            seen = picture[:, torch.from_numpy(region).to(picture.device)].T
            distances.append(_distance(seen, colour).mean() if len(seen) else picture.new_tensor(MISSING))
        return -sum(distances) / 2


def array(image) -> np.ndarray:
    """One checked image -> (H, W, 3) uint8."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return image.permute(1, 2, 0).numpy()
    return np.array(read_rgb(image))


def lab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB in [0, 1], (..., 3) -> CIELAB under D65, (..., 3), with finite gradients everywhere."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    ratio = linear @ XYZ.to(linear).T
    curved = torch.where(ratio > 0.008856, ratio.clamp(min=0.008856) ** (1 / 3), 7.787 * ratio + 16 / 116)
    x, y, z = curved.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _distance(pixels: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """(M, 3) and (3,) in sRGB -> (M,), smooth at 0."""
    return ((lab(pixels) - lab(colour)).square().sum(-1) + 1).sqrt() - 1


def _check(prompts: list[str]) -> None:
    for position, prompt in enumerate(prompts):
        try:
            parse_prompt(prompt)
        except ValueError as error:
            raise InputError(f"prompt {position}: {error}") from None
