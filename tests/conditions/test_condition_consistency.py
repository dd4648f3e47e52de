"""Condition against extracted condition: one for obedience, chance for anything else, whatever the kind of condition."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext.conditions.catalogue import CONDITIONS
from diffusers_ext.conditions.consistency import agreement, condition_consistency, edge_agreement, value_agreement
from diffusers_ext.data.tensors import as_tensor
from diffusers_ext.randomness import generator
from diffusers_ext.toy import circles as fill50k

KEYS = [(0, index) for index in range(6)]
NAMES = [name for name in CONDITIONS if name != "segmentation"]  # colours label maps; a picture has none


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([fill50k.draw_target(fill50k.scene(index), 64) for index in range(6)])


def extract(name: str, pictures: np.ndarray, seed: int = 0) -> torch.Tensor:
    draws = [generator(seed, "condition", *key) for key in KEYS]
    return torch.stack([as_tensor(CONDITIONS[name](each, draw)) for each, draw in zip(pictures, draws)])


@pytest.mark.parametrize("name", NAMES)
def test_the_true_picture_scores_one_and_anothers_less(pictures, name):
    conditions = extract(name, pictures, seed=7)
    true = condition_consistency(pictures, conditions, CONDITIONS[name], KEYS, seed=7)
    assert true.shape == (6,) and true.dtype == np.float64 and (true == 1).all()
    wrong = condition_consistency(np.roll(pictures, 1, axis=0), conditions, CONDITIONS[name], KEYS, seed=7)
    assert (wrong < 1).all() and wrong.mean() < 0.8


def test_the_condition_is_extracted_under_its_own_key(pictures):
    """Masks are drawn: under other keys other pixels are marked, and nothing but the keys says which."""
    conditions = extract("blur", pictures)
    fixed = condition_consistency(pictures, conditions, CONDITIONS["blur"])
    assert fixed[0] == 1 and (fixed[1:] < 1).all()  # without keys everyone gets the draw of (0, 0)


def test_pictures_may_come_in_any_form(pictures):
    conditions = extract("softedge", pictures)
    expected = condition_consistency(pictures[::-1], conditions, CONDITIONS["softedge"], KEYS)
    tensor = torch.from_numpy(pictures[::-1].copy()).permute(0, 3, 1, 2) / 255
    for form in (tensor, [Image.fromarray(each) for each in pictures[::-1]]):
        assert (condition_consistency(form, conditions, CONDITIONS["softedge"], KEYS) == expected).all()


def test_more_noise_scores_less(pictures):
    conditions, noise = extract("softedge", pictures), np.random.default_rng(0).normal(size=pictures.shape)
    noisy = [np.clip(pictures + level * noise, 0, 255).astype(np.uint8) for level in (0, 8, 32, 96)]
    scores = [condition_consistency(each, conditions, CONDITIONS["softedge"], KEYS).mean() for each in noisy]
    assert scores == sorted(scores, reverse=True) and scores[0] == 1 and scores[-1] < 0.5


def line(column: int) -> np.ndarray:
    edges = np.zeros((64, 64), bool)
    edges[:, column] = True
    return edges


def test_edges_a_pixel_apart_agree_and_farther_ones_do_not():
    assert edge_agreement(line(30), line(31)) == 1 and edge_agreement(line(30), line(33)) == 0
    assert edge_agreement(line(30), line(33), tolerance=3) == 1
    # Half of what was found is wanted, all that is wanted was found: F = 2·½·1 / (½ + 1).
    assert edge_agreement(line(10) | line(50), line(10)) == pytest.approx(2 / 3)
    assert edge_agreement(line(10), line(10) | line(50)) == pytest.approx(2 / 3)
    blank = np.zeros((64, 64), bool)
    assert edge_agreement(blank, blank) == 1 and edge_agreement(blank, line(1)) == edge_agreement(line(1), blank) == 0


def test_the_tolerance_grows_with_the_picture():
    """0.0075 of the diagonal: 5.4 pixels at 512."""
    edges = [np.zeros((512, 512), bool) for _ in range(3)]
    for each, column in zip(edges, (200, 205, 206)):
        each[:, column] = True
    assert edge_agreement(edges[0], edges[1]) == 1 and edge_agreement(edges[0], edges[2]) == 0


def test_values_agree_as_lin_defines_it():
    x, y = np.random.default_rng(0).random((2, 3, 8, 8))
    covariance = np.cov(x.ravel(), y.ravel(), bias=True)
    expected = 2 * covariance[0, 1] / (np.trace(covariance) + (x.mean() - y.mean()) ** 2)
    assert value_agreement(x, y) == pytest.approx(expected)
    assert value_agreement(x, 1 - x) < 0 < value_agreement(x, x / 2) < 1  # weaker is not equal
    flat = np.full((3, 8, 8), 0.5)
    assert value_agreement(flat, flat) == 1 and value_agreement(flat, x) == 0 and value_agreement(flat, flat / 2) == 0


def test_marked_pixels_do_not_count():
    x = np.random.default_rng(0).random((3, 8, 8))
    masked, hidden = x.copy(), x.copy()
    masked[:, :4] = -1
    hidden[:, :4] = 0.3
    assert value_agreement(hidden, masked) == 1 and value_agreement(hidden, x) < 1


def test_edges_that_a_mask_hides_do_not_count():
    wanted = np.repeat(line(10)[None].astype(np.float32), 3, axis=0)
    wanted[:, :, 40:] = -1
    found = np.repeat((line(10) | line(50))[None].astype(np.float32), 3, axis=0)
    assert agreement(found, wanted) == 1 and agreement(found, np.maximum(wanted, 0)) == pytest.approx(2 / 3)


def test_several_masks_are_not_one_edge_map():
    """Channels of zeros and ones that differ are compared by value: all of them, not their union."""
    masks = torch.zeros(1, 2, 64, 64)
    masks[0, 0, :, :32] = masks[0, 1, :, 32:] = 1
    swapped = np.ascontiguousarray(masks[0].flip(0).permute(1, 2, 0).numpy())
    scores = condition_consistency(np.zeros((1, 64, 64, 3), np.uint8), masks, lambda image, draw: swapped)
    assert scores[0] == -1


def test_what_does_not_fit_is_refused(pictures):
    conditions = extract("canny", pictures)
    with pytest.raises(ValueError, match="6 images, 5 conditions and 6 keys"):
        condition_consistency(pictures, conditions[:5], CONDITIONS["canny"], KEYS)
    with pytest.raises(ValueError, match=r"image 0: the extractor gives \(3, 64, 64\) where the condition is \(1, 64"):
        condition_consistency(pictures, conditions[:, :1], CONDITIONS["canny"])
