"""One geometry for all of a sample's pictures, buckets and their order, and what deep conditions keep."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from diffusers_ext import randomness
from diffusers_ext.conditions.catalogue import resolve
from diffusers_ext.data.buckets import BucketBatches
from diffusers_ext.data.files import MASKED, Row, load, load_condition, size_of
from diffusers_ext.data.geometry import assign_buckets, bucket_sizes, frame
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.preflight import check, check_turns
from diffusers_ext.errors import InputError
from diffusers_ext.randomness import Share

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 64], [250, 250, 10]], np.uint8)


def row(image, condition=None) -> Row:
    return Row(image, ("",), condition, "test")


def random_sizes(count: int) -> list[tuple[int, int]]:
    sides = np.exp(np.random.default_rng(0).uniform(np.log(20), np.log(300), size=(count, 2)))
    return [tuple(int(side) for side in pair) for pair in sides]


def ramps(width: int, height: int) -> np.ndarray:
    """Each pixel's own place: x and y of its centre as fractions, and zero; (H, W, 3) float32."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.float32)


def test_thousand_sizes_stay_aligned(tmp_path):
    sizes, rng = random_sizes(1000), np.random.default_rng(1)
    rows = []
    for index, (width, height) in enumerate(sizes):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        picture.save(tmp_path / f"{index}.bmp")
        rows.append(row(tmp_path / f"{index}.bmp", tmp_path / f"{index}.bmp"))
    buckets = assign_buckets(sizes, 64, 16)
    pairs = Pairs(rows, 64, seed=0, random_crop=True, flip=0.5, buckets=buckets)
    for index, bucket in enumerate(buckets):
        sample = pairs[3, index]
        assert sample["pixel_values"].shape == (3, bucket[1], bucket[0])
        assert torch.equal(sample["pixel_values"], sample["conditioning_pixel_values"] * 2 - 1), sizes[index]
    assert len(set(buckets)) > 5 and {pairs.frame((3, index)).flip for index in range(50)} == {False, True}


def test_pixels_are_where_the_frame_says_at_any_scale_of_the_condition():
    """The condition may be larger or smaller than its picture: each shows the same place at each pixel."""
    for index, original in enumerate(random_sizes(200)):
        size = assign_buckets([original], 64, 16)[0]
        drawn = frame(original, size, seed=0, key=(0, index), random_crop=True, flip=0.5)
        for scale in (1, 2, 3):
            place = drawn.apply(ramps(original[0] * scale, original[1] * scale))
            columns = np.arange(size[0])[:: -1 if drawn.flip else 1]
            wanted = (
                (drawn.offset[0] + columns + 0.5) / drawn.scaled[0],
                (drawn.offset[1] + np.arange(size[1]) + 0.5) / drawn.scaled[1],
            )
            inner = slice(4, -4)  # at a picture's border the filter is one-sided
            assert np.abs(place[:, :, 0] - wanted[0])[inner, inner].max() * drawn.scaled[0] < 0.5
            assert np.abs(place[:, :, 1] - wanted[1][:, None])[inner, inner].max() * drawn.scaled[1] < 0.5


def test_label_maps_gain_no_colours(tmp_path):
    rng = np.random.default_rng(2)
    for index, (width, height) in enumerate(random_sizes(200)):
        labels = np.kron(rng.integers(0, 4, (height // 5 + 1, width // 5 + 1)), np.ones((5, 5), int))[:height, :width]
        drawn = frame((width, height), (64, 48), key=(0, index), random_crop=True, flip=0.5)
        cut = drawn.apply(COLOURS[labels], nearest=True)
        assert {tuple(colour) for colour in cut.reshape(-1, 3)} <= {tuple(colour) for colour in COLOURS}
    Image.fromarray(COLOURS[labels]).save(tmp_path / "labels.png")
    sample = Pairs([row(tmp_path / "labels.png", tmp_path / "labels.png")], 32, seed=0, label_maps=True)[0, 0]
    found = (sample["conditioning_pixel_values"] * 255).round().byte().flatten(1).T.tolist()
    assert {tuple(colour) for colour in found} <= {tuple(colour) for colour in COLOURS.tolist()}


def test_a_picture_of_the_right_size_is_not_touched():
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert np.array_equal(frame((64, 48), (64, 48)).apply(noise), noise)
    assert np.array_equal(frame((64, 48), (48, 48)).apply(noise), noise[:, 8:56])
    assert np.array_equal(frame((64, 48), (64, 48), flip=1).apply(noise), noise[:, ::-1])


def test_crops_and_flips_are_drawn_anew_each_epoch_and_reach_every_place():
    drawn = [frame((80, 64), (64, 64), 0, (epoch, 5), random_crop=True, flip=0.3) for epoch in range(400)]
    assert {each.offset[0] for each in drawn} == set(range(17)) and {each.offset[1] for each in drawn} == {0}
    assert 0.22 < np.mean([each.flip for each in drawn]) < 0.38
    again = frame((80, 64), (64, 64), 0, (7, 5), random_crop=True, flip=0.3)
    assert again == drawn[7]
    assert frame((80, 64), (64, 64), 0, (7, 5), random_crop=True).offset == again.offset  # flips do not move crops
    assert frame((80, 64), (64, 64)).offset == (8, 0) and not frame((80, 64), (64, 64)).flip


def test_time_ids_are_the_true_geometry():
    """original (H, W), top and left of the cut, target (H, W); left counts in the mirrored picture."""
    middle = frame((100, 50), (64, 64))
    assert middle.scaled == (128, 64) and middle.time_ids().tolist() == [50, 100, 0, 32, 64, 64]
    for epoch in range(20):
        drawn = frame((100, 50), (64, 64), 0, (epoch, 0), random_crop=True, flip=1)
        full = frame((100, 50), (128, 64), flip=1).apply(ramps(100, 50))
        top, left = map(int, drawn.time_ids()[2:4])
        assert np.allclose(drawn.apply(ramps(100, 50)), full[top : top + 64, left : left + 64], atol=1e-4)


@pytest.mark.parametrize(("resolution", "multiple"), [(64, 64), (512, 64), (1024, 64), (64, 16), (768, 8)])
def test_bucket_sizes(resolution, multiple):
    sizes = bucket_sizes(resolution, multiple)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0 and width * height <= resolution**2
        assert resolution / 2 <= min(width, height) and max(width, height) <= 2 * resolution
        assert (height, width) in sizes


def test_a_resolution_off_the_grid_is_refused():
    with pytest.raises(InputError, match=r"--resolution 100: aspect buckets need a multiple of 64"):
        bucket_sizes(100)


def test_pictures_go_to_the_bucket_that_cuts_least():
    assert assign_buckets([(1200, 900), (900, 1200), (50, 50), (5000, 100)], 512) == [
        (576, 448),
        (448, 576),
        (512, 512),
        (1024, 256),
    ]


def batches(buckets, ranks=1, rank=0, start=0, stop=60, accumulation=2, batch_size=4, seed=0):
    return list(BucketBatches(buckets, seed, Share(batch_size, stop, start, accumulation, ranks, rank)))


BUCKETS = ["wide"] * 37 + ["tall"] * 21 + ["square"] * 41 + ["odd"]  # 100 samples; one bucket smaller than a batch


def test_a_batch_has_one_bucket_and_samples_come_equally_often():
    drawn = batches(BUCKETS, stop=500)  # 4000 samples: 40 epochs
    assert len(drawn) == len(BucketBatches(BUCKETS, 0, Share(4, 500, accumulation=2))) == 1000
    assert all(len(batch) == 4 and len({BUCKETS[index] for _, index in batch}) == 1 for batch in drawn)
    keys = [key for batch in drawn for key in batch]
    assert len(set(keys)) == len(keys)  # no (epoch, sample) twice
    counts = np.bincount([index for _, index in keys], minlength=100)
    assert counts.min() >= 39 and counts.max() <= 41


def test_bucket_order_differs_between_epochs_and_seeds():
    drawn = batches(BUCKETS, stop=100)
    kinds = [BUCKETS[batch[0][1]] for batch in drawn]
    assert len({tuple(kinds[first : first + 24]) for first in range(0, 192, 24)}) > 6
    assert drawn != batches(BUCKETS, stop=100, seed=1) and drawn == batches(BUCKETS, stop=100)


def test_resuming_gives_the_same_batches():
    whole = batches(BUCKETS)
    for step in (1, 17, 59):
        assert batches(BUCKETS, start=step) == whole[2 * step :]


def test_ranks_share_the_batches_and_the_split_does_not_matter():
    alone = batches(BUCKETS, accumulation=4)
    ranks = [batches(BUCKETS, ranks=2, rank=rank) for rank in (0, 1)]
    assert [batch for both in zip(*ranks) for batch in both] == alone
    assert not {key for batch in ranks[0] for key in batch} & {key for batch in ranks[1] for key in batch}


def test_few_samples_and_one_bucket_still_fill_batches():
    drawn = batches(["a", "b", "b"], batch_size=8, stop=30)
    assert all(len(batch) == 8 for batch in drawn)
    counts = np.bincount([index for batch in drawn for _, index in batch])
    assert counts.max() - counts.min() <= 8


@pytest.fixture
def depth(tmp_path):
    """A depth ramp of 4096 levels in a low range, and its picture."""
    levels = np.linspace(1000, 5095, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray((levels >> 5).astype(np.uint8)).convert("RGB").save(tmp_path / "picture.png")
    return levels


@pytest.mark.parametrize("form", ["png", "tif", "float.tif", "npy", "float.npy"])
def test_deep_conditions_keep_their_levels(depth, tmp_path, form):
    path = tmp_path / f"depth.{form}"
    values = (depth / 65535).astype(np.float32) if form.startswith("float") else depth
    np.save(path, values) if form.endswith("npy") else Image.fromarray(values).save(path)
    sample = Pairs([row(tmp_path / "picture.png", path)], 32, seed=0)[0, 0]["conditioning_pixel_values"]
    assert sample.shape == (3, 32, 32) and sample.dtype == torch.float32
    assert len(sample.unique()) >= 64 and torch.equal(sample[0], sample[2])
    assert abs(sample.mean().item() - depth.mean() / 65535) < 1e-4
    whole = load_condition(path)
    assert np.allclose(whole[..., 0], depth / 65535, atol=1e-7) and whole.dtype == np.float32


def test_a_deep_picture_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    assert len(np.unique(np.array(load(tmp_path / "deep.png")))) == 64


def test_channels_of_an_array_pass_through(tmp_path):
    five = np.random.default_rng(0).random((40, 40, 5)).astype(np.float32)
    np.save(tmp_path / "five.npy", five)
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    sample = Pairs([row(tmp_path / "picture.png", tmp_path / "five.npy")], 40, seed=0, flip=1)[0, 0]
    assert torch.equal(sample["conditioning_pixel_values"], torch.from_numpy(five[:, ::-1].copy().transpose(2, 0, 1)))


def test_masks_stay_masks(tmp_path):
    values = np.full((64, 64, 3), 0.5, np.float32)
    values[:, :21] = MASKED
    np.save(tmp_path / "mask.npy", values)
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    for side in (16, 64, 96):
        found = Pairs([row(tmp_path / "picture.png", tmp_path / "mask.npy")], side, seed=0)[0, 0]
        condition = found["conditioning_pixel_values"]
        assert ((condition == MASKED) | (condition - 0.5).abs().lt(1e-6)).all()  # nothing in between
        assert abs((condition == MASKED).float().mean().item() - 21 / 64) < 1 / side


def test_values_out_of_range_are_refused_by_file(tmp_path):
    Image.fromarray(np.full((8, 8), 3.5, np.float32)).save(tmp_path / "metres.tif")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    with pytest.raises(InputError, match=r"metres\.tif: cannot be read \(values of float32 .* scale them"):
        Pairs([row(tmp_path / "picture.png", tmp_path / "metres.tif")], 8, seed=0)[0, 0]
    np.save(tmp_path / "flat.npy", np.zeros(5, np.float32))
    with pytest.raises(InputError, match=r"flat\.npy: .*expected \(height, width\)"):
        Pairs([row(tmp_path / "picture.png", tmp_path / "flat.npy")], 8, seed=0)[0, 0]


def test_conditions_are_computed_after_the_cut_and_drawn_by_key(circles):
    def noisy(image, draw):
        return (image // 2 + draw.integers(0, 128, image.shape)).astype(np.uint8)

    path = circles / "images/000001.png"
    pairs = Pairs([row(path)], 48, seed=3, condition=noisy, random_crop=True, flip=0.5)
    cut = pairs.frame((4, 0)).apply(np.array(load(path)))
    expected = noisy(cut, randomness.generator(3, "condition", 4, 0))
    sample = pairs[4, 0]
    assert np.array_equal((sample["conditioning_pixel_values"] * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    assert torch.equal(sample["conditioning_pixel_values"], pairs.condition(0, epoch=4))
    assert torch.equal(sample["pixel_values"], pairs.picture(0, epoch=4))


def test_every_condition_works_in_the_data_set(circles):
    for name in ("inpaint", "tile", "softedge"):
        sample = Pairs([row(circles / "images/000001.png")], 64, seed=0, condition=resolve(name))[0, 0]
        assert sample["conditioning_pixel_values"].shape == (3, 64, 64)
        assert (sample["conditioning_pixel_values"] == MASKED).any() == (name == "inpaint")


def test_label_maps_are_coloured_after_the_cut(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (50, 70)).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.new("RGB", (70, 50)).save(tmp_path / "picture.png")
    rows = [row(tmp_path / "picture.png", tmp_path / "labels.png")]
    coloured = Pairs(rows, 32, seed=0, condition=resolve("segmentation"), label_maps=True).condition(0)
    assert len(coloured.flatten(1).T.unique(dim=0)) == 5


def test_sizes_from_the_header_are_as_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"turned.{suffix}", exif=exif)
        assert size_of(tmp_path / f"turned.{suffix}") == load(tmp_path / f"turned.{suffix}").size == (10, 20)


def test_conditions_of_buckets_are_sampled_from_one_size(circles):
    rows = [row(circles / "images/000001.png", circles / "conditions/000001.png")] * 4
    pairs = Pairs(rows, 64, seed=0, buckets=[(64, 64), (80, 48), (64, 64), (48, 80)])
    assert pairs.sample_conditions(64).shape == (2, 3, 64, 64)
    assert pairs.fixed and not Pairs(rows, 64, seed=0, flip=0.1).fixed


# ---------------------------------------------------------------- levels of colour, and turns of one file of a pair


def deep_colours() -> np.ndarray:
    """(40, 48, 3) uint16 with many levels between those of 8 bits."""
    return np.random.default_rng(5).integers(0, 65536, (40, 48, 3), dtype=np.uint16)


def write_deep(path, values: np.ndarray, form: str) -> None:
    """Save (H, W, 3) uint16 in a form by whose name it is told."""
    if form == "planar.tif":
        tifffile.imwrite(path, np.moveaxis(values, 2, 0).copy(), photometric="rgb", planarconfig="separate")
    elif form == "big-endian.tif":
        tifffile.imwrite(path, values, photometric="rgb", byteorder=">")
    elif form == "alpha.png":
        cv2.imwrite(str(path), np.dstack([values[..., ::-1], np.full(values.shape[:2], 65535, np.uint16)]))
    elif form == "lossless.jp2":
        cv2.imwrite(str(path), values[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    else:  # .png, .ppm, .tif with LZW
        cv2.imwrite(str(path), values[..., ::-1])


@pytest.mark.parametrize(
    "form", ["plain.png", "alpha.png", "lzw.tif", "big-endian.tif", "planar.tif", "plain.ppm", "lossless.jp2"]
)
def test_colours_of_16_bits_keep_every_level(tmp_path, form):
    values = deep_colours()
    write_deep(tmp_path / form, values, form)
    found = load_condition(tmp_path / form)
    assert found.dtype == np.float32 and np.array_equal(np.rint(found * 65535).astype(np.uint16), values)
    assert load(tmp_path / form).mode == "RGB"


@pytest.mark.parametrize("form", ["plain.png", "turned.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_colours_of_16_bits_are_turned_as_those_of_8_are(tmp_path, form, orientation):
    values = deep_colours()
    if form == "plain.png":
        exif = Image.Exif()
        exif[0x0112] = orientation
        write_deep(tmp_path / form, values, form)
        data, tag = (tmp_path / form).read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(tag)) + b"eXIf" + tag + struct.pack(">I", zlib.crc32(b"eXIf" + tag))
        (tmp_path / form).write_bytes(data[:33] + chunk + data[33:])
    else:
        tag = (0x0112, "H", 1, orientation, True)
        tifffile.imwrite(tmp_path / form, values, photometric="rgb", extratags=[tag])
    found, eight = load_condition(tmp_path / form), np.asarray(load(tmp_path / form), np.float32) / 255
    assert found.shape == eight.shape and np.abs(found - eight).max() < 1 / 255
    assert size_of(tmp_path / form) == found.shape[1::-1]


def test_transparency_of_16_bits_lies_over_white(tmp_path):
    half = np.full((8, 8, 4), (1000, 2000, 3000, 32768), np.uint16)
    half[0, 0] = 7
    cv2.imwrite(str(tmp_path / "half.png"), half)
    alpha = 32768 / 65535
    wanted = np.array([3000, 2000, 1000]) / 65535 * alpha + 1 - alpha
    assert np.allclose(load_condition(tmp_path / "half.png")[1, 1], wanted, atol=1e-5)


def test_a_cut_deep_picture_is_refused(tmp_path):
    write_deep(tmp_path / "cut.png", deep_colours(), "plain.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated"):
        load_condition(tmp_path / "cut.png")


def disc(path, orientation: int = 1, size: tuple[int, int] = (32, 32)) -> None:
    picture = Image.new("RGB", size, "white")
    picture.paste("red", (3, 5, 20, 14))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif) if orientation > 1 else picture.save(path)


@pytest.mark.parametrize("role", ["image", "condition", "mask"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_turn_of_one_file_of_a_square_pair_is_named(tmp_path, role, orientation):
    for name in ("image", "condition", "mask"):
        disc(tmp_path / f"{name}.jpg", orientation if name == role else 1)
    rows = [Row(tmp_path / "image.jpg", ("",), tmp_path / "condition.jpg", "table:1", tmp_path / "mask.jpg")]
    with pytest.raises(InputError, match=r"(?s)turn .*exif_transpose"):
        check(rows)
    with pytest.raises(InputError, match=r"EXIF orientation is"):
        check_turns(rows[0])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_files_that_are_turned_alike_are_a_pair(tmp_path, suffix):
    for name in ("image", "condition"):
        disc(tmp_path / f"{name}.{suffix}", 6)
    rows = [row(tmp_path / f"image.{suffix}", tmp_path / f"condition.{suffix}")]
    assert not check(rows).faults and check_turns(rows[0]) is None


def test_a_quarter_turn_shows_in_the_sizes_but_a_half_turn_does_not(tmp_path):
    disc(tmp_path / "turned.jpg", 6, (48, 32))
    disc(tmp_path / "upright.png", 1, (32, 48))
    assert not check([row(tmp_path / "turned.jpg", tmp_path / "upright.png")]).faults
    disc(tmp_path / "turned.jpg", 3, (32, 48))
    with pytest.raises(InputError, match="1 turn"):
        check([row(tmp_path / "turned.jpg", tmp_path / "upright.png")])
    np.save(tmp_path / "depth.npy", np.random.default_rng(0).random((48, 32)).astype(np.float32))
    with pytest.raises(InputError, match="1 turn"):
        check([row(tmp_path / "turned.jpg", tmp_path / "depth.npy")])


@pytest.mark.parametrize("value", [0, 9, 200, (6, 1)])
def test_a_turn_that_exif_does_not_have_is_none(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.new("RGB", (20, 10)).save(tmp_path / "odd.png", exif=exif)
    assert size_of(tmp_path / "odd.png") == load(tmp_path / "odd.png").size
