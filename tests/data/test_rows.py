"""Reading an image folder, and refusing a bad one before any work."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext.data.geometry import cover
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.rows import check, load, read_image_folder
from diffusers_ext.data.tensors import to_tensor
from diffusers_ext.errors import InputError


@pytest.fixture
def folder(circles, tmp_path):
    """A copy of the circles that a test may damage."""
    return shutil.copytree(circles, tmp_path / "set")


def edit(folder, line: int, **changes):
    """Change one row of metadata.jsonl; None removes a key."""
    path = folder / "metadata.jsonl"
    lines = path.read_text().splitlines()
    row = {**json.loads(lines[line - 1]), **changes}
    lines[line - 1] = json.dumps({name: value for name, value in row.items() if value is not None})
    path.write_text("\n".join(lines) + "\n")


def outline(width: int, height: int) -> Image.Image:
    """A condition of any shape that is not blank."""
    drawn = Image.new("RGB", (width, height))
    drawn.paste("white", (4, 4, 9, 9))
    return drawn


def refusal(folder, **columns) -> str:
    with pytest.raises(InputError) as refused:
        check(read_image_folder(str(folder), **columns))
    return str(refused.value)


def test_rows_are_read_in_order(circles):
    rows = read_image_folder(str(circles))
    check(rows)
    assert len(rows) == 48 and rows[3].image == circles / "images/000003.png"
    assert rows[3].condition == circles / "conditions/000003.png" and rows[3].origin.endswith("metadata.jsonl:4")
    assert len(read_image_folder(str(circles), limit=5)) == 5
    assert read_image_folder(str(circles), conditioning_image_column=None)[0].condition is None


def test_other_column_names(folder):
    edit(folder, 1, file_name=None, picture="images/000000.png", caption="x", edge_file_name="conditions/000000.png")
    (row,) = read_image_folder(str(folder), "picture", "caption", "edge", limit=1)
    assert row.text == "x" and row.image.name == row.condition.name == "000000.png"


def test_missing_folder_metadata_rows(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "metadata.jsonl: missing; write one JSON object per picture" in refusal(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    assert "holds no rows" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "no caption under 'text'; it has file_name"),
        ({"text": 5}, "no caption under 'text'"),
        ({"file_name": None}, "no 'file_name'"),
        ({"conditioning_image_file_name": None}, "no 'conditioning_image_file_name'"),
        ({"file_name": "../../etc/passwd"}, "lies outside"),
    ],
)
def test_a_bad_row_is_named_by_line(folder, changes, message):
    edit(folder, 7, **changes)
    assert message in (error := refusal(folder)) and "metadata.jsonl:7" in error


def test_broken_json_is_named_by_line(folder):
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('{"file_name": \n')
    assert "metadata.jsonl:49: not valid JSON" in refusal(folder)


def test_every_bad_file_is_named_at_once(folder):
    (folder / "images/000002.png").write_bytes((folder / "images/000002.png").read_bytes()[:60])
    (folder / "images/000005.png").unlink()
    (folder / "conditions/000009.png").write_bytes(b"")
    outline(64, 48).save(folder / "conditions/000011.png")
    error = refusal(folder)
    assert error.startswith("4 faults in 48 rows")
    assert "images/000002.png: cannot be read" in error and "images/000005.png: missing" in error
    assert "conditions/000009.png: cannot be read" in error
    assert "conditions/000011.png: 64x48 does not have the shape of its image, 64x64" in error


def test_a_condition_may_have_another_scale_of_the_same_shape(folder):
    outline(33, 33).save(folder / "conditions/000000.png")
    check(read_image_folder(str(folder)))


def test_many_faults_are_counted(folder):
    for path in (folder / "images").glob("*.png"):
        path.write_bytes(b"not a picture")
    for path in (folder / "conditions").glob("*.png"):
        path.unlink()
    error = refusal(folder)
    assert error.startswith("96 faults in 48 rows") and error.endswith("and 46 more")
    assert "faults: 48 unreadable, 48 missing" in error


def test_exif_and_transparency(tmp_path):
    turned = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load(tmp_path / "turned.jpg").size == (10, 20)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (70, 100), (33, 200), (40, 30)])
def test_one_geometry_for_both_pictures(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    square = cover(Image.fromarray(noise), 64)
    assert square.size == (64, 64)
    assert np.array_equal(np.array(square), np.array(cover(Image.fromarray(noise.copy()), 64)))


def test_tensors_have_their_ranges(circles):
    sample = Pairs(read_image_folder(str(circles)), 64, seed=0)[0, 3]
    assert sample["pixel_values"].shape == sample["conditioning_pixel_values"].shape == (3, 64, 64)
    assert sample["pixel_values"].min() >= -1 and sample["pixel_values"].min() < 0
    assert sample["conditioning_pixel_values"].min() == 0 and sample["conditioning_pixel_values"].max() == 1
    assert torch.equal(to_tensor(load(circles / "images/000003.png")) * 2 - 1, sample["pixel_values"])


def test_captions_are_dropped_anew_each_epoch(circles):
    pairs = Pairs(read_image_folder(str(circles)), 64, seed=0, proportion_empty_prompts=0.5)
    dropped = np.array([[pairs.caption((epoch, index)) == "" for index in range(48)] for epoch in range(20)])
    assert 0.47 < dropped.mean() < 0.53
    assert dropped.any(axis=0).all() and not dropped.all(axis=0).any()  # every caption both dropped and seen
