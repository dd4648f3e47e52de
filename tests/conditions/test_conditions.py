"""Condition images: each is a function of its key, holds its promise about values, and survives odd pictures."""

import io
import runpy
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext.conditions import catalogue as module
from diffusers_ext.conditions import drawing as condition_tools
from diffusers_ext.conditions.catalogue import CONDITIONS, colour_labels, resolve, voc_palette
from diffusers_ext.conditions.edges import canny_magnitude, sobel_magnitude
from diffusers_ext.data.tensors import as_tensor
from diffusers_ext.errors import InputError
from diffusers_ext.randomness import generator

DATA = Path(__file__).parents[2].parent / "shared" / "assets" / "data"
SIZES = [(1, 1), (1, 9), (7, 5), (64, 64), (160, 107)]
DRAWN = [name for name in CONDITIONS if name not in ("grayscale", "segmentation", "identity")]
EDGES = ["canny", "scribble", "lineart", "softedge", "lines"]


def key(index: int = 0) -> np.random.Generator:
    return generator(0, "condition", 0, index)


def scene(height: int, width: int) -> np.ndarray:
    """A drawn picture: a ramp, a box, a disc, a thin line and a little noise."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = np.dstack([x, y, 1 - x]) * 120 + 60
    picture[(x > 0.15) & (x < 0.45) & (y > 0.2) & (y < 0.6)] = (230, 40, 30)
    picture[np.hypot(x - 0.7, y - 0.6) < 0.2] = (20, 60, 200)
    picture[np.abs(x - y) < 0.01] = 250
    return np.clip(picture + np.random.default_rng(0).normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


def archived(name: str, count: int) -> list[np.ndarray]:
    """The first `count` photographs of an archive of the workspace; an empty list where it is missing."""
    if not (DATA / name).exists():
        return []
    with zipfile.ZipFile(DATA / name) as archive:
        files = [file for file in archive.namelist() if file.endswith(".jpg")][:count]
        return [np.array(Image.open(io.BytesIO(archive.read(file))).convert("RGB")) for file in files]


def source(name: str, picture: np.ndarray) -> np.ndarray:
    """What a condition is computed from: the picture, or for segmentation a label map of its shape."""
    return np.repeat(picture[..., :1] // 32, 3, axis=2) if name == "segmentation" else picture


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    found = archived("bsds500_150_edges.zip", 6) + archived("imagenet_sample160.zip", 6)
    if not found:
        pytest.skip(f"no photographs: {DATA} holds neither bsds500_150_edges.zip nor imagenet_sample160.zip")
    return found


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CONDITIONS)
def test_shape_type_and_range(name, size):
    for index in range(4):
        made = CONDITIONS[name](source(name, scene(*size)), key(index))
        assert made.shape == (*size, 3)
        tensor = as_tensor(made)
        assert tensor.shape == (3, *size) and tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert made.dtype == (np.float32 if name == "inpaint" else np.uint8)
        assert tensor.max() <= 1 and ((tensor >= 0) | (tensor == -1)).all()
        assert name == "inpaint" or tensor.min() >= 0


@pytest.mark.parametrize("name", CONDITIONS)
def test_same_key_same_condition_and_the_picture_stays(name):
    picture = source(name, scene(64, 96))
    before = picture.copy()
    picture.setflags(write=False)
    first, second = (CONDITIONS[name](picture, key(3)) for _ in range(2))
    assert np.array_equal(first, second) and np.array_equal(picture, before)
    assert not np.shares_memory(first, picture)


@pytest.mark.parametrize("name", DRAWN)
def test_other_keys_give_other_conditions(name):
    made = {CONDITIONS[name](scene(256, 256), key(index)).tobytes() for index in range(8)}
    assert len(made) >= 4  # a width of one or two pixels, or a count of colours, may well be drawn twice


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_flipped_view_counts_as_its_copy(name):
    view = source(name, scene(48, 64))[:, ::-1]
    made, copied = CONDITIONS[name](view, key()), CONDITIONS[name](view.copy(), key())
    assert np.array_equal(made, copied)
    assert torch.equal(as_tensor(made[:, ::-1]), as_tensor(made).flip(2))


@pytest.mark.parametrize("name", CONDITIONS)
def test_photographs(name, photographs):
    for index, picture in enumerate(photographs):
        made = CONDITIONS[name](source(name, picture), key(index))
        assert made.shape == picture.shape
        assert made.std() > 0
        if name in EDGES:
            assert 0 < (made > 127).mean() < 0.5


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_blank_picture_has_no_edges(name, level):
    assert not CONDITIONS[name](np.full((64, 48, 3), level, np.uint8), key()).any()


@pytest.mark.parametrize("name", ["tile", "palette_grid", "palette_colours", "blur", "grayscale", "shuffle"])
def test_a_blank_picture_stays_blank(name):
    blank = np.full((64, 48, 3), 90, np.uint8)
    assert np.abs(CONDITIONS[name](blank, key()).astype(int) - blank).max() <= 1


@pytest.mark.parametrize("name", EDGES)
def test_edges_lie_where_the_picture_changes(name):
    picture = np.full((128, 128, 3), 40, np.uint8)
    picture[:, 64:] = 200
    edges = CONDITIONS[name](picture, key())[..., 0] > 127
    assert edges[:, 60:68].any(axis=1).mean() > 0.9
    assert not edges[:, :52].any() and not edges[:, 76:].any()


def faint(picture: np.ndarray, contrast: float) -> np.ndarray:
    return np.rint(110 + picture * contrast).astype(np.uint8)


def test_canny_finds_what_fixed_thresholds_miss():
    for contrast in (0.01, 0.05):
        picture = faint(scene(96, 96), contrast)
        assert not cv2.Canny(picture, 100, 200).any()
        assert all(CONDITIONS["canny"](picture, key(index)).any() for index in range(20))


def test_canny_finds_what_fixed_thresholds_miss_in_photographs(photographs):
    for index, photograph in enumerate(photographs):
        picture = faint(photograph, 0.05)
        assert not cv2.Canny(picture, 100, 200).any()
        assert 0.001 < (CONDITIONS["canny"](picture, key(index)) > 0).mean() < 0.3


@pytest.mark.parametrize("level", [1, 3, 100])
def test_canny_finds_a_straight_edge_of_any_angle(level):
    y, x = np.mgrid[:33, :33] - 16.0
    for degrees in range(0, 180, 15):
        side = np.cos(np.radians(degrees)) * x + np.sin(np.radians(degrees)) * y > 0.3
        picture = np.repeat((100 + level * side).astype(np.uint8)[..., None], 3, axis=2)
        assert CONDITIONS["canny"](picture, key(degrees)).any(), degrees


@pytest.mark.parametrize("name", ["canny", "scribble", "softedge", "lineart"])
def test_edges_between_colours_of_equal_luma(name):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (255, 0, 0), (0, 130, 0)
    assert np.ptp(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)) <= 1
    assert CONDITIONS[name](picture, key()).any()


def test_canny_leaves_noise_alone_where_something_is_drawn():
    picture = np.full((256, 256, 3), 100.0)
    picture[100:120, 100:120] = 180
    noisy = np.rint(picture + np.random.default_rng(0).normal(0, 1.5, picture.shape)).astype(np.uint8)
    for index in range(8):
        edges = CONDITIONS["canny"](noisy, key(index))[..., 0] > 0
        assert edges[96:124, 96:124].sum() > 60
        assert not edges[:90].any() and not edges[130:].any()


def test_canny_is_binary_and_thin():
    edges = CONDITIONS["canny"](scene(160, 160), key())
    assert set(np.unique(edges)) == {0, 255}
    assert not cv2.erode(edges[..., 0], np.ones((3, 3))).any()


def test_scribble_keeps_no_specks():
    picture = np.zeros((512, 512, 3), np.uint8)
    picture[100:400, 100:400] = 90
    picture[450:456, 450:456] = 255
    for index in range(8):
        made = CONDITIONS["scribble"](picture, key(index))
        assert made[80:420, 80:120].any() and not made[430:, 430:].any()


def test_softedge_stays_soft_in_a_sparse_drawing():
    picture = np.full((256, 256, 3), 255, np.uint8)
    cv2.circle(picture, (128, 128), 8, (0, 0, 0), 1)
    made = CONDITIONS["softedge"](picture, key())
    assert np.percentile(made, 98) == 0  # nearly all is paper, so the strongest hundredth tells little
    assert (made == 255).sum() < 0.6 * (made > 20).sum()


def test_lines_are_straight():
    picture = np.full((256, 256, 3), 30, np.uint8)
    cv2.line(picture, (20, 30), (230, 200), (240, 240, 240), 6)
    y, x = np.nonzero(CONDITIONS["lines"](picture, key())[..., 0] > 127)
    distance = np.abs((x - 20) * 170 - (y - 30) * 210) / np.hypot(170, 210)
    assert len(x) > 200 and distance.max() < 7


def test_tile_keeps_the_mean_and_loses_detail():
    picture = scene(128, 128)
    for index in range(8):
        made = CONDITIONS["tile"](picture, key(index)).astype(float)
        assert np.abs(made.mean(axis=(0, 1)) - picture.mean(axis=(0, 1))).max() < 2
        assert cv2.Laplacian(made, cv2.CV_64F).var() < 0.5 * cv2.Laplacian(picture.astype(float), cv2.CV_64F).var()


def test_tile_compresses_as_pillow_does():
    picture, file = scene(64, 64), io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=40)
    assert np.abs(condition_tools.through_jpeg(picture, 40).astype(float) - np.array(Image.open(file))).mean() < 1


def test_palette_grid_holds_the_means_of_its_cells():
    picture = scene(160, 160)
    made = CONDITIONS["palette_grid"](picture, key()).astype(float)
    assert np.abs(made.mean(axis=(0, 1)) - picture.mean(axis=(0, 1))).max() < 1.5
    assert 16 <= len(np.unique(made.reshape(-1, 3), axis=0)) <= 256


def test_palette_colours_has_few_colours_close_to_the_pictures():
    picture = scene(140, 200)
    for index in range(4):
        made = CONDITIONS["palette_colours"](picture, key(index))
        assert 4 <= len({*map(tuple, made.reshape(-1, 3).tolist())}) <= 16
        assert np.abs(made.astype(float) - picture).mean() < 25


def test_blur_leaves_less_variation():
    picture = scene(128, 128)
    steps = [
        np.abs(np.diff(image.astype(float), axis=1)).mean() for image in (picture, CONDITIONS["blur"](picture, key()))
    ]
    assert steps[1] < 0.7 * steps[0]


def test_grayscale_is_opencvs():
    picture = scene(40, 50)
    made = CONDITIONS["grayscale"](picture, key())
    assert np.array_equal(made, np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2))


def test_inpaint_marks_and_keeps():
    picture = scene(90, 120)
    for index in range(20):
        made = CONDITIONS["inpaint"](picture, key(index))
        masked = (made == -1).all(axis=2)
        assert 0.001 < masked.mean() < 1
        assert np.array_equal(made[~masked], picture[~masked].astype(np.float32) / 255)


def test_segmentation_has_the_palettes_colours():
    labels = np.random.default_rng(0).integers(0, 21, (37, 53), dtype=np.uint8)
    made = CONDITIONS["segmentation"](labels, key())
    assert np.array_equal(made, CONDITIONS["segmentation"](np.repeat(labels[..., None], 3, axis=2), key()))
    assert {tuple(colour) for colour in made.reshape(-1, 3)} == {tuple(voc_palette()[label]) for label in range(21)}


def test_voc_palette():
    # The first colours and the last as the VOC development kit prints them: background, aeroplane, ..., void.
    palette = voc_palette()
    assert palette[[0, 1, 2, 3, 15, 20, 255]].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]),
        *([192, 128, 128], [0, 64, 128], [224, 224, 192]),
    ]
    assert len(np.unique(palette, axis=0)) == 256


def test_segmentation_refuses_photographs_and_foreign_labels():
    with pytest.raises(InputError, match="label map"):
        CONDITIONS["segmentation"](scene(32, 32), key())
    for labels in (np.array([[3]]), np.array([[-1]]), np.array([[0.5]])):
        with pytest.raises(InputError, match="from 0 to 2"):
            colour_labels(labels, voc_palette()[:3])


def test_shuffle_keeps_colours_and_moves_them():
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:, 64:] = (200, 100, 50)
    made = CONDITIONS["shuffle"](picture, key())
    between = (made[..., 0] > 0) & (made[..., 0] < 200)
    assert between.mean() < 0.1 and 0.1 < (made[..., 0] == 200).mean() < 0.9
    assert (made != picture).any(axis=2).mean() > 0.2


def test_resolve():
    assert next(iter(CONDITIONS)) == "canny" and len(CONDITIONS) == 14
    assert all(resolve(name) is condition for name, condition in CONDITIONS.items())
    assert resolve("diffusers_ext.conditions.catalogue:canny") is module.canny


@pytest.mark.parametrize(
    "name, problem",
    [
        ("cany", "choose canny, scribble"),
        ("", "module:callable"),
        (":canny", "module:callable"),
        ("diffusers_ext.conditions.catalogue:", "module:callable"),
        ("no_such_module:canny", "No module named 'no_such_module'"),
        (".conditions:canny", "module:callable"),
        ("diffusers_ext.conditions.catalogue:cany", "has no 'cany'"),
        ("diffusers_ext.conditions.catalogue:MASKED", "is a float"),
    ],
)
def test_resolve_says_what_is_wrong(name, problem):
    with pytest.raises(InputError, match=problem):
        resolve(name)


@pytest.mark.parametrize(
    "condition, problem",
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3)), "float64"),
        (torch.zeros(3, 4, 4), "not Tensor"),
        (np.full((4, 4, 3), 255, np.float32), r"in \[0, 1\]"),
        (np.full((4, 4, 3), -0.5, np.float32), r"in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan, np.float32), r"in \[0, 1\]"),
    ],
)
def test_as_tensor_refuses(condition, problem):
    with pytest.raises(InputError, match=problem):
        as_tensor(condition)


def test_as_tensor_takes_any_number_of_channels():
    depth = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1)
    assert torch.equal(as_tensor(depth), torch.from_numpy(depth[..., 0])[None])


def test_sobel_magnitude_of_known_pictures():
    step = torch.zeros(2, 3, 6, 8)
    step[0, :, :, 4:] = 1  # left black, right white
    step[1, 0, 3:] = 0.5  # red steps by a half downwards
    made = sobel_magnitude(step)
    assert made.shape == (2, 1, 6, 8)
    assert made[0, 0, :, 3:5] == pytest.approx(1, abs=2e-3) and made[0, 0, :, [0, 1, 2, 5, 6, 7]].abs().max() == 0
    assert made[1, 0, 2:4] == pytest.approx((0.25 / 3) ** 0.5, abs=2e-3)


def test_sobel_magnitude_is_softedges_formula():
    picture = scene(40, 56)
    ours = condition_tools.edge_strength(*condition_tools.gradients(picture, 1.2))[1:-1, 1:-1]
    blurred = cv2.GaussianBlur(picture.astype(np.float64) / 255, (0, 0), 1.2)
    theirs = sobel_magnitude(torch.from_numpy(blurred).permute(2, 0, 1)[None], epsilon=1e-6)[0, 0, 1:-1, 1:-1]
    assert ours / (4 * 255) == pytest.approx(theirs.numpy(), abs=2e-3)


def test_canny_magnitude_fades_the_faint_and_keeps_the_strong():
    for level, expected in ((0.04, 0.0), (0.9, 0.9)):
        picture = torch.zeros(1, 3, 16, 16)
        picture[..., 8:] = level
        peak = canny_magnitude(picture, sigma=0.3).max()
        assert peak == pytest.approx(expected, abs=0.05 * level + 1e-3)


def test_canny_magnitude_is_strong_on_canny_edges():
    picture = scene(96, 96)
    soft = canny_magnitude(as_tensor(picture)[None])[0, 0]
    edges = as_tensor(CONDITIONS["canny"](picture, key()))[0] > 0
    assert soft[edges].mean() > 5 * soft[~edges].mean()


@pytest.mark.parametrize("extract", [sobel_magnitude, canny_magnitude])
def test_gradients_match_finite_differences(extract):
    images = torch.rand(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(extract, images, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("extract", [sobel_magnitude, canny_magnitude])
def test_gradients_are_finite_on_blank_and_tiny_pictures(extract):
    for size in ((1, 1), (7, 5)):
        images = torch.full((1, 3, *size), 0.5, requires_grad=True)
        made = extract(images)
        made.sum().backward()
        assert made.abs().max() < 1e-6 and images.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_command_draws_the_sheet(tmp_path, monkeypatch):
    picture, sheet = str(tmp_path / "picture.png"), str(tmp_path / "sheet.png")
    Image.fromarray(scene(80, 100)).save(picture)
    monkeypatch.setattr(sys, "argv", ["conditions.py", picture, "--resolution", "64", "--output", sheet])
    runpy.run_module(module.__name__, run_name="__main__")
    assert Image.open(sheet).width > 7 * 192


def test_command_names_a_picture_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"absent\.png: cannot be read"):
        module.main(module.Options(image=str(tmp_path / "absent.png")))
    with pytest.raises(InputError, match="no picture given"):
        module.main(module.Options())
