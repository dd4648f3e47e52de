"""Every planted fault is found and named, good data raise none, and what is handled is noted."""

import io
import json
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext.data.files import Row, Rows
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.preflight import check, contact_sheet
from diffusers_ext.data.rows import read_rows
from diffusers_ext.errors import InputError
from diffusers_ext.toy import circles as fill50k


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    return fill50k.write(tmp_path_factory.mktemp("preflight") / "pairs", count=200, size=48)


@pytest.fixture
def folder(good, tmp_path) -> Path:
    """A copy of 200 good pairs that a test may damage."""
    return shutil.copytree(good, tmp_path / "set")


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth noise that no test mistakes for blank."""
    noise = np.random.default_rng(width * height).integers(0, 256, (8, 8, len(mode)), dtype=np.uint8)
    return Image.fromarray(noise, mode).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **settings)
    return stream.getvalue()


def quarter_turn() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def bomb() -> bytes:
    """A PNG of 40000 x 40000 pixels in a few bytes: its header is all that is needed."""
    header = bytearray(saved(Image.new("1", (1, 1)), format="PNG"))
    header[16:24] = (40000).to_bytes(4, "big") * 2
    header[29:33] = __import__("zlib").crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


PLANTED = {
    "truncated": ("images/000010.png", lambda data: data[: len(data) // 2]),
    "missing": ("images/000020.png", lambda data: None),
    "shape": ("conditions/000030.png", lambda data: saved(photograph(48, 40), format="PNG")),
    "range": (
        "conditions/000040.png",
        lambda data: saved(Image.fromarray(np.eye(48, dtype=np.float32) * 9), format="TIFF"),
    ),
    "blank": ("conditions/000050.png", lambda data: saved(Image.new("RGB", (48, 48)), format="PNG")),
    "empty": ("images/000060.png", lambda data: b""),
    "bomb": ("images/000070.png", lambda data: bomb()),
    "unreadable": ("images/000080.png", lambda data: b"<html>404 not found</html>"),
    "turned": ("images/000090.png", lambda data: saved(photograph(48, 32), format="JPEG", exif=quarter_turn())),
}
HANDLED = {
    "16-bit": ("conditions/000110.png", lambda: Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48))),
    "transparent": ("conditions/000120.png", lambda: photograph(48, 48, "RGBA")),
}


def plant(folder: Path) -> None:
    """Nine faults in files of different rows, an orphan; and what is handled: a row given twice and two kinds of files."""
    for name, spoil in PLANTED.values():
        data = spoil((folder / name).read_bytes())
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
    photograph(48, 32).save(folder / "conditions/000090.png")  # fits the picture as it lies, not as it is turned
    shutil.copy(folder / "images/000000.png", folder / "images/orphan.png")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join([*lines, lines[99]]) + "\n")
    for name, draw in HANDLED.values():
        draw().save(folder / name)


def test_good_data_raise_no_alarm(good):
    report = check(read_rows(str(good)))
    assert report.faults == report.notes == [] and len(report.rows) == len(report.sizes) == report.total == 200
    assert set(report.sizes) == {(48, 48)}
    assert report.summary() == "200 rows checked, 200 good; 0 faults, 0 notes; 0 without a caption"


def test_every_planted_fault_is_named_and_nothing_else(folder):
    plant(folder)
    with pytest.raises(InputError) as refused:
        check(read_rows(str(folder)))
    message = str(refused.value)
    assert message.startswith("10 faults in 201 rows")
    for name, _ in PLANTED.values():
        wanted = name.replace("images/000090", "conditions/000090")  # of a pair the condition is named
        assert message.count(f"{folder / wanted}: ") == 1, name
    assert f"{folder}/images/orphan.png: belongs to no pair" in message
    assert "metadata.jsonl:201" not in message  # a row given twice is no fault
    assert len([line for line in message.splitlines() if line.startswith("  ")]) == 10
    assert "only one of them is turned by its EXIF data" in message and "decompression bomb" in message


def test_skipping_leaves_out_exactly_the_bad_rows(folder):
    plant(folder)
    rows = read_rows(str(folder))
    report = check(rows, on_bad_sample="skip")
    bad = sorted({int(Path(name).stem) for name, _ in PLANTED.values()})
    assert report.rows == [row for index, row in enumerate(rows) if index not in bad]
    assert sorted(fault.kind for fault in report.faults) == sorted(
        [
            "truncated",
            "missing",
            "shape",
            "unreadable",
            "blank",
            "empty",
            "bomb",
            "unreadable",
            "shape",
            "orphan",
        ]
    )
    assert "201 rows checked, 192 good; 10 faults" in report.summary()
    repeat = f"{folder}/metadata.jsonl:201: gives the same files and caption as {folder}/metadata.jsonl:100"
    assert [note.text for note in report.notes if note.kind == "duplicate"] == [f"{repeat}, which so weighs more"]
    pairs = Pairs(report.rows, 32, seed=0)
    assert all(torch.isfinite(pairs[0, index]["pixel_values"]).all() for index in range(0, len(pairs), 10))


def test_what_is_handled_is_noted_not_refused(folder):
    for name, draw in HANDLED.values():
        draw().save(folder / name)
    turned = saved(photograph(48, 48), format="JPEG", exif=quarter_turn())
    for place in ("images", "conditions"):  # both: a turn of one of them is a fault
        (folder / place / "000130.png").write_bytes(turned)
    shutil.copy(folder / "images/000001.png", folder / "images/000140.png")
    report = check(read_rows(str(folder)))
    assert sorted(note.kind for note in report.notes) == [
        "16-bit",
        "same bytes",
        "same picture",
        "transparent",
        "turned",
        "turned",
    ]
    named = " ".join(note.text for note in report.notes)
    assert all(f"{number:06d}.png" in named for number in (110, 120, 130, 140)) and len(report.rows) == 200


def test_conditions_of_another_number_of_channels_are_named(tmp_path):
    photograph(8, 8).save(tmp_path / "picture.png")
    rows = []
    for index in range(5):
        values = np.random.default_rng(index).random((8, 8, 5 if index != 3 else 4)).astype(np.float32)
        np.save(tmp_path / f"{index}.npy", values)
        rows.append(Row(tmp_path / "picture.png", (f"{index}",), tmp_path / f"{index}.npy", f"row {index}"))
    report = check(rows, on_bad_sample="skip")
    assert [fault.text for fault in report.faults] == [f"{tmp_path}/3.npy: 4 channels, the others have 5 (row 3)"]
    assert len(report.rows) == 4


def test_truncated_jpegs_and_broken_arrays_are_found(tmp_path):
    data = saved(photograph(400, 300), format="JPEG", quality=95)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 3 // 4])
    (tmp_path / "whole.jpg").write_bytes(data)
    np.save(tmp_path / "nan.npy", np.full((300, 400), np.nan, np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:500])
    pairs = [("cut.jpg", None), ("whole.jpg", "nan.npy"), ("whole.jpg", "cut.npy"), ("whole.jpg", None)]
    rows = [Row(tmp_path / a, ("",), b and tmp_path / b, f"row {n}") for n, (a, b) in enumerate(pairs)]
    report = check(rows, on_bad_sample="skip")
    assert len(report.rows) == 1 and [fault.text.split(": ")[0] for fault in report.faults] == [
        str(tmp_path / name) for name in ("cut.jpg", "nan.npy", "cut.npy")
    ]


@pytest.mark.parametrize(
    ("image", "condition", "same"),
    [
        ((100, 1000), (33, 333), True),
        ((1005, 3030), (335, 1010), True),
        ((512, 512), (64, 64), True),
        ((100, 75), (1333, 1000), True),
        ((1200, 900), (1152, 896), False),
        ((64, 64), (64, 60), False),
        ((640, 480), (480, 640), False),
    ],
)
def test_shapes_equal_to_within_a_pixel(tmp_path, image, condition, same):
    photograph(*image).save(tmp_path / "a.png")
    photograph(*condition).save(tmp_path / "b.png")
    report = check([Row(tmp_path / "a.png", ("",), tmp_path / "b.png", "row")] * 1 + [good_row(tmp_path)], "skip")
    assert [fault.kind for fault in report.faults] == ([] if same else ["shape"])


def good_row(folder: Path) -> Row:
    photograph(9, 9).save(folder / "fine.png")
    return Row(folder / "fine.png", ("",), None, "fine")


def test_the_digest_changes_with_any_file_and_any_caption(good, folder):
    rows = read_rows(str(good))
    digest = check(rows).digest
    assert check(read_rows(str(folder))).digest == digest  # where the files lie is no matter
    for name in ("images/000003.png", "conditions/000007.png"):
        before = (folder / name).read_bytes()
        photograph(48, 48).save(folder / name)
        assert check(read_rows(str(folder))).digest != digest
        (folder / name).write_bytes(before)
    assert check([*rows[:-1], Row(rows[-1].image, ("other",), rows[-1].condition, "")]).digest != digest


def test_one_picture_may_have_several_captions_in_rows_of_their_own(tmp_path):
    row = good_row(tmp_path)
    report = check([row, Row(row.image, ("another",), None, "second")])
    assert report.faults == report.notes == []


def test_nothing_left_and_an_unknown_policy_are_refused(tmp_path):
    rows = Rows([Row(tmp_path / "absent.png", ("",), None, "row")])
    with pytest.raises(InputError, match=r"absent\.png: missing"):
        check(rows, on_bad_sample="skip")
    with pytest.raises(InputError, match="choose error or skip"):
        check(rows, on_bad_sample="ignore")


def unzip(shared: Path, name: str, place: Path, count: int) -> Path:
    archive = shared / "assets/data" / f"{name}.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    with zipfile.ZipFile(archive) as file:
        lines = file.read("metadata.jsonl").decode().splitlines()[:count]
        records = [json.loads(line) for line in lines]
        for record in records:
            for column in ("file_name", "conditioning_file_name"):
                if column in record:
                    file.extract(record[column], place)
            record.setdefault("captions", ["a photograph"])
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    return place


@pytest.mark.parametrize(("name", "condition"), [("flickr8k_1k", None), ("bsds500_150_edges", "conditioning")])
def test_real_pictures_raise_no_alarm(shared, tmp_path, name, condition):
    rows = read_rows(str(unzip(shared, name, tmp_path, 100)), "image", "captions", condition)
    report = check(rows)
    assert report.faults == [] and len(report.rows) == 100
    assert all(len(row.texts) == 5 for row in rows) or name != "flickr8k_1k"


def test_real_pictures_are_checked_fast(shared, tmp_path):
    rows = read_rows(
        str(unzip(shared, "flickr8k_1k", tmp_path, 300)), caption_column="captions", conditioning_image_column=None
    )
    start = time.process_time()
    check(rows)
    assert time.process_time() - start < 3


def test_contact_sheet_shows_what_the_network_sees(good, tmp_path):
    pairs = Pairs(read_rows(str(good)), 48, seed=0, flip=0.5, proportion_empty_prompts=0.5)
    path = contact_sheet(pairs, tmp_path / "run/sheet.png", count=3)
    with Image.open(path) as sheet:
        page = np.array(sheet)
    assert page.shape[1] == 6 * 166 + 6 and page.shape[0] > 3 * 166
    cell = Image.fromarray(page[64 : 64 + 160, 6 : 6 + 160]).resize((48, 48), Image.Resampling.BOX)
    seen = ((pairs[0, 0]["pixel_values"].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    assert np.abs(np.array(cell).astype(float) - seen).mean() < 2


def test_contact_sheet_of_pictures_alone_and_of_many_channels(tmp_path):
    row = good_row(tmp_path)
    np.save(tmp_path / "five.npy", np.random.default_rng(0).random((9, 9, 5)).astype(np.float32))
    for condition in (None, tmp_path / "five.npy"):
        dataset = Pairs([Row(row.image, ("",), condition, "row")], 16, seed=0)
        assert contact_sheet(dataset, tmp_path / "sheet.png").is_file()


def test_check_does_not_depend_on_threads(folder):
    plant(folder)
    rows = read_rows(str(folder))

    first, second = (check(rows, "skip", workers=workers) for workers in (1, 8))
    assert first == second
