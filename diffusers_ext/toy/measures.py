"""Does a picture obey? On fill50k the answer is exact: circle against outline (IoU), colours against prompt (CIEDE2000).

Neither measure uses a learned model. The circle is found from the image alone, so a wrong colour does not change the
IoU and a wrong place does not change the colour error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, binary_fill_holes
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.filters import threshold_otsu

from ..data.tensors import as_uint8
from .circles import parse_prompt

VISIBLE = 5.0  # CIEDE2000: an image whose pixels all lie closer to its border's colour shows no circle


@dataclass(frozen=True)
class ConditionFollowing:
    """One value per image, float64 arrays of shape (N,).

    iou: circle found in the image against the disc the condition outlines, 0 to 1.
    circle_error, background_error: CIEDE2000 to the prompt's colours, 0 (equal) to about 100; None without prompts.
    """

    iou: np.ndarray
    circle_error: np.ndarray | None = None
    background_error: np.ndarray | None = None

    def summary(self) -> dict[str, float]:
        """Mean IoU and median colour errors."""
        values = {"iou": float(self.iou.mean())}
        if self.circle_error is not None and self.background_error is not None:
            values["circle_error"] = float(np.median(self.circle_error))
            values["background_error"] = float(np.median(self.background_error))
        return values


def condition_following(images: Any, conditions: Any, prompts: Sequence[str] | None = None) -> ConditionFollowing:
    """Measure how well generated images follow their outlines, and their prompts where given.

    Args:
        images, conditions: N images of one size each: PIL images, or (N, H, W, 3) arrays or (N, 3, H, W) tensors,
            uint8 in 0..255 or float in 0..1. Conditions are outlines, white on black.
        prompts: N fill50k prompts, "<colour> circle with <colour> background".

    Raises ValueError if counts or sizes differ, or a prompt is not of fill50k.

    >>> from diffusers_ext.toy.circles import Fill50k, draw_target, scene
    >>> outline = Fill50k(1, 64)[0, 0]['conditioning_pixel_values']
    >>> picture = draw_target(Fill50k(1, 64).scene(0), 64)
    >>> float(condition_following([picture], outline[None]).iou[0]) > 0.9
    True
    """
    pictures, outlines = as_uint8(images), as_uint8(conditions)
    if len(pictures) != len(outlines):
        raise ValueError(f"{len(pictures)} images but {len(outlines)} conditions")
    for position, (picture, outline) in enumerate(zip(pictures, outlines)):
        if picture.shape != outline.shape:
            raise ValueError(
                f"image {position} is {picture.shape[1::-1]} but its condition {outline.shape[1::-1]}; resize one"
            )
    found = [find_circle(picture) for picture in pictures]
    iou = np.array([_iou(mask, outlined_disc(outline)) for mask, outline in zip(found, outlines)])
    if prompts is None:
        return ConditionFollowing(iou)
    return ConditionFollowing(iou, *_colour_errors(pictures, found, prompts))


def colour_error(images: Any, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the CIEDE2000 of circle and background to the prompts' colours, (N,) each; images as in `condition_following`.

    Where no circle can be seen, both regions take the border's colour, so the circle's error is that of a missing circle.
    """
    pictures = as_uint8(images)
    return _colour_errors(pictures, [find_circle(picture) for picture in pictures], prompts)


def circle_likeness(images: Any) -> np.ndarray:
    """Return how much of a circle there is in each image, (N,): IoU of what is found with the disc of its area and centroid.

    1 is a circle, 0 that nothing is seen. No condition and no prompt is needed. images as in `condition_following`.

    >>> from .circles import draw_target, scene
    >>> float(circle_likeness([draw_target(scene(0), 64)])[0]) > 0.9
    True
    """
    return np.array([_iou(found, fitted_disc(found)) for found in map(find_circle, as_uint8(images))])


def fitted_disc(found: np.ndarray) -> np.ndarray:
    """Return the disc with the area and the centroid of a mask: (H, W) bool; empty for an empty one."""
    if not found.any():
        return found
    rows, columns = (np.asarray(index) for index in np.indices(found.shape))
    distance = np.hypot(rows - rows[found].mean(), columns - columns[found].mean())
    return distance <= np.sqrt(found.sum() / np.pi)


def find_circle(picture: np.ndarray) -> np.ndarray:
    """Return the mask of what differs from the border's median colour, split by Otsu's threshold on CIEDE2000.

    picture: (H, W, 3) uint8; returns (H, W) bool, all False where nothing can be seen.
    """
    lab = rgb2lab(picture / 255.0)
    border = np.concatenate([lab[0], lab[-1], lab[1:-1, 0], lab[1:-1, -1]])
    distance = deltaE_ciede2000(lab, np.broadcast_to(np.median(border, axis=0), lab.shape))
    if distance.max() < VISIBLE:
        return np.zeros(distance.shape, dtype=bool)
    return distance > threshold_otsu(distance)


def outlined_disc(outline: np.ndarray) -> np.ndarray:
    """Fill a white outline: (H, W, 3) uint8 -> (H, W) bool."""
    return binary_fill_holes(outline.max(axis=2) > 127)


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 0.0


def _colour_errors(
    pictures: list[np.ndarray], found: list[np.ndarray], prompts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    if len(prompts) != len(pictures):
        raise ValueError(f"{len(pictures)} images but {len(prompts)} prompts")
    seen, named = [], []
    for picture, mask, prompt in zip(pictures, found, prompts):
        named.append(parse_prompt(prompt))
        inside = binary_erosion(mask)  # the antialiased edge belongs to neither region
        outside = binary_erosion(~mask, border_value=1)
        inside = inside if inside.any() else mask if mask.any() else outside
        seen.append((np.median(picture[inside], axis=0), np.median(picture[outside], axis=0)))
    error = deltaE_ciede2000(rgb2lab(np.array(seen) / 255.0), rgb2lab(np.array(named) / 255.0))
    return error[:, 0], error[:, 1]
