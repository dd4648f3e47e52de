"""The regenerated tutorial set, and the metric that reads it back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import diffusers_ext
from diffusers_ext.toy import circles as fill50k
from diffusers_ext.toy.measures import colour_error, condition_following, find_circle, outlined_disc


def test_colour_names_are_css():
    colours = fill50k.css_colours()
    assert len(colours) == len(set(colours.values())) == 139
    assert all(ImageColor.getrgb(name.replace(" ", "")) == rgb for name, rgb in colours.items())
    assert colours["dark slate gray"] == (47, 79, 79)


def test_splits_share_no_colour_pair():
    train, test = set(fill50k.colour_pairs("train")), set(fill50k.colour_pairs("test"))
    assert not train & test and len(test) > 500 and len(train) > 10 * len(test)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        fill50k.colour_pairs("validation")


def test_a_scene_depends_on_its_index_alone():
    assert fill50k.scene(7, seed=3) == fill50k.scene(7, seed=3)
    assert len({fill50k.scene(index) for index in range(100)}) == 100
    assert fill50k.scene(7, seed=3) != fill50k.scene(7, seed=4)


@pytest.mark.parametrize("size", [32, 64, 200])
def test_filling_the_condition_gives_the_circle(size):
    for index in range(40):
        scene = fill50k.scene(index)
        disc = outlined_disc(fill50k.draw_condition(scene, size))
        exact = np.pi * (scene.radius * size) ** 2
        assert disc.sum() == pytest.approx(exact, rel=0.12)
        target = fill50k.draw_target(scene, size)
        x, y = int(scene.x * size), int(scene.y * size)
        assert tuple(target[y, x]) == fill50k.css_colours()[scene.circle]
        assert tuple(target[0, 0]) == fill50k.css_colours()[scene.background]


def test_targets_measure_as_perfect():
    scenes = [fill50k.scene(index, split="test") for index in range(64)]
    targets = [Image.fromarray(fill50k.draw_target(scene, 64)) for scene in scenes]
    conditions = [Image.fromarray(fill50k.draw_condition(scene, 64)) for scene in scenes]
    found = diffusers_ext.condition_following(targets, conditions, [scene.prompt for scene in scenes])
    assert found.iou.min() > 0.9 and found.iou.mean() > 0.97
    assert found.circle_error.max() == found.background_error.max() == 0


def test_place_and_colour_are_measured_apart():
    scene = fill50k.Scene(0.4, 0.4, 0.2, "red", "white")
    moved = fill50k.Scene(0.6, 0.6, 0.2, "red", "white")
    recoloured = fill50k.Scene(0.4, 0.4, 0.2, "blue", "black")
    condition = fill50k.draw_condition(scene, 64)
    images = [fill50k.draw_target(drawn, 64) for drawn in (moved, recoloured)]
    found = condition_following(images, [condition] * 2, [scene.prompt] * 2)
    assert found.iou[0] < 0.3 and found.circle_error[0] == 0
    assert found.iou[1] > 0.9 and min(found.circle_error[1], found.background_error[1]) > 30


def test_iou_of_two_discs_is_geometry():
    first, second = fill50k.Scene(0.4, 0.5, 0.2, "red", "white"), fill50k.Scene(0.5, 0.5, 0.2, "red", "white")
    found = condition_following([fill50k.draw_target(first, 256)], [fill50k.draw_condition(second, 256)])
    radius, distance = 0.2, 0.1
    lens = 2 * radius**2 * np.arccos(distance / (2 * radius)) - distance / 2 * np.sqrt(4 * radius**2 - distance**2)
    assert found.iou[0] == pytest.approx(lens / (2 * np.pi * radius**2 - lens), abs=0.02)
    assert found.circle_error is None


def test_nothing_to_see_scores_zero():
    flat = np.full((64, 64, 3), 200, np.uint8)
    scene = fill50k.scene(0)
    found = condition_following([flat], [fill50k.draw_condition(scene, 64)], [scene.prompt])
    assert not find_circle(flat).any() and found.iou[0] == 0


def test_tensors_and_arrays_measure_like_pictures():
    scenes = [fill50k.scene(index) for index in range(4)]
    targets = np.stack([fill50k.draw_target(scene, 64) for scene in scenes])
    conditions = np.stack([fill50k.draw_condition(scene, 64) for scene in scenes])
    tensor = torch.from_numpy(targets).permute(0, 3, 1, 2).float() / 255
    plain = condition_following(targets, conditions)
    np.testing.assert_array_equal(condition_following(tensor, conditions).iou, plain.iou)
    np.testing.assert_array_equal(condition_following(targets / 255.0, conditions).iou, plain.iou)


def test_bad_input_is_named():
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="1 images but 2 conditions"):
        condition_following([image], [image, image])
    with pytest.raises(ValueError, match=r"\(64, 64\) but its condition \(32, 32\)"):
        condition_following([image], [image[:32, :32]])
    with pytest.raises(ValueError, match="not a fill50k prompt: 'a cat'"):
        colour_error([image], ["a cat"])
    with pytest.raises(ValueError, match="list of images"):
        condition_following(Image.fromarray(image), [image])


def test_written_folder_is_an_image_folder(tmp_path):
    folder = fill50k.write(tmp_path / "set", count=5, size=32)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and set(rows[0]) >= {"file_name", "conditioning_image_file_name", "text", "x", "y", "radius"}
    assert np.array_equal(
        np.array(Image.open(folder / rows[3]["file_name"])), fill50k.draw_target(fill50k.scene(3), 32)
    )
    before = (folder / "metadata.jsonl").stat().st_mtime_ns
    fill50k.write(folder, count=5, size=32)
    assert (folder / "metadata.jsonl").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="holds other data"):
        fill50k.write(folder, count=6, size=32)


def test_written_folder_loads_with_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is an extra: pip install diffusers_ext[data]")
    folder = fill50k.write(tmp_path / "set", count=3, size=32)
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"image", "conditioning_image", "text"} <= set(loaded.column_names)


def test_stream_equals_folder(circles):
    from diffusers_ext.data.pairs import Pairs
    from diffusers_ext.data.rows import read_image_folder

    folder, stream = Pairs(read_image_folder(str(circles)), 64, seed=0), fill50k.Fill50k(48, 64)
    for index in (0, 17):
        for name, value in stream[0, index].items():
            assert (
                torch.equal(folder[0, index][name], value)
                if isinstance(value, torch.Tensor)
                else folder[0, index][name] == value
            )
