"""Grids hold every picture whole, whatever its size, and every label."""

import numpy as np
from PIL import Image

from diffusers_ext.figures import captioned_grid, fit, labelled_grid, plot_curves


def count(page: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.array(page) == colour).all(axis=2).sum())


def test_pictures_of_any_size_fit_their_cells():
    red, tall, wide = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    images = [Image.new("RGB", (8, 8), red), Image.new("RGB", (30, 90), tall), Image.new("RGB", (700, 70), wide)]
    page = labelled_grid([images, images], ["a", "b", "c"], ["first", "a very long label " * 30], cell=100, title="t")
    assert count(page, red) == 2 * 100 * 100
    assert count(page, tall) == 2 * 100 * 33 and count(page, wide) == 2 * 100 * 10
    assert page.width == 3 * 106 + 6


def test_small_pictures_are_enlarged_without_new_colours():
    checks = Image.fromarray((np.indices((4, 4)).sum(axis=0) % 2 * 255).astype(np.uint8))
    assert set(np.unique(np.array(fit(checks, 100)))) == {0, 255}


def test_captions_are_wrapped_under_their_pictures():
    images = [Image.new("RGB", (8, 8), (255, 0, 0))] * 5
    page = captioned_grid(
        images, ["dark olive green circle with light goldenrod yellow background"] * 5, columns=3, cell=64
    )
    assert count(page, (255, 0, 0)) == 5 * 64 * 64
    assert page.size == (3 * 70 + 6, 6 + 2 * (64 + 42 + 6))


def test_curves_are_written(tmp_path):
    plot_curves(tmp_path / "curve.png", {"a": ([1, 2], [3, 4]), "b": ([1, 2], [4, 3])}, "step", "loss", log_y=True)
    assert Image.open(tmp_path / "curve.png").size[0] > 300
