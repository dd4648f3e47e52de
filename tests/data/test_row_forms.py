"""Folders, archives and tables as people have them: read whole, or refused by name; nothing is left out unsaid."""

import io
import json
import os
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from diffusers_ext.control.data import without_repeats
from diffusers_ext.data.files import Columns
from diffusers_ext.data.held_out import hold_out
from diffusers_ext.data.preflight import check
from diffusers_ext.data.rows import parquet_files, read_rows
from diffusers_ext.data.stream import Stream
from diffusers_ext.errors import InputError


def picture(number: int, outline: bool = False) -> Image.Image:
    drawn = Image.new("RGB", (16, 16), "black" if outline else "white")
    ImageDraw.Draw(drawn).ellipse([2 + number % 3, 3, 12, 11 + number % 4], None if outline else "red", "blue")
    drawn.putpixel((0, 0), (number, 0, 0))
    return drawn


def png(number: int, outline: bool = False) -> bytes:
    stream = io.BytesIO()
    picture(number, outline).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def two(tmp_path) -> Path:
    """images/ and conditions/ of four pairs."""
    for number in range(4):
        write(tmp_path / f"two/images/{number}.png", png(number))
        write(tmp_path / f"two/conditions/{number}.png", png(number, True))
    return tmp_path / "two"


@pytest.fixture
def records(two) -> list[dict]:
    return [
        {"file_name": f"images/{n}.png", "conditioning_image_file_name": f"conditions/{n}.png", "text": f"disc {n}"}
        for n in range(4)
    ]


def pack_tar(path: Path, folder: Path) -> Path:
    """The folder's pairs as 0.png, 0.cond.png and whatever lies beside the images."""
    with tarfile.open(path, "w") as archive:
        for file in sorted((folder / "images").rglob("*")):
            archive.add(file, str(file.relative_to(folder / "images")), recursive=False)
        for file in sorted((folder / "conditions").glob("*.png")):
            archive.add(file, f"{file.stem}.cond.png")
    return path


def pack_zip(path: Path, folder: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(folder)}")
    return path


def jsonl(records: list[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def texts(source, **settings) -> list[tuple[str, ...]]:
    return [row.texts for row in read_rows(str(source), **settings)]


def forms(two: Path) -> list[Path]:
    return [two, pack_tar(two.parent / "two.tar", two), pack_zip(two.parent / "two.zip", two)]


# ------------------------------------------------------------------ captions beside pictures


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".caption", ".Caption", ".json", ".JSON"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_beside_pictures_are_read_in_every_form(two, suffix, encoding):
    for number in range(4):
        text = f"un café, {number}"
        text = json.dumps({"caption": text}, ensure_ascii=False) if suffix.lower() == ".json" else text
        write(two / f"images/{number}{suffix}", text.encode(encoding))
    for source in forms(two):
        report = check(read_rows(str(source)))
        assert [row.texts for row in report.rows] == [(f"un café, {n}",) for n in range(4)], source
        assert report.notes == [] and report.summary().endswith("0 without a caption")


def test_of_several_caption_files_one_is_read_and_the_others_named(two):
    for number in range(4):
        write(two / f"images/{number}.json", json.dumps({"caption": "json", "prompt": "column"}))
    assert texts(two, caption_column="prompt") == [("column",)] * 4
    for number in range(4):
        write(two / f"images/{number}.caption", "kohya")
    assert texts(two) == [("kohya",)] * 4
    write(two / "images/2.txt", "text")
    for source in forms(two):
        rows = read_rows(str(source))
        assert [row.text for row in rows] == ["kohya", "kohya", "text", "kohya"]
        told = " ".join(note.text for note in rows.notes)
        assert "captions are read from .caption; 3 .json beside them not, such as" in told
        assert "captions are read from .txt; 1 .caption beside them not" in told


def test_rows_without_a_caption_are_counted(two):
    write(two / "images/0.txt", "one")
    write(two / "images/1.png.txt", "two")  # of the picture's whole name
    write(two / "images/2.txt", " \n")
    report = check(read_rows(str(two)))
    assert [row.text for row in report.rows] == ["one", "two", "", ""]
    assert f"2 without a caption, such as {two}/images/2.png" in report.summary()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("1.txt", "ligne\nun café".encode("cp1252"), r"1\.txt:2: not UTF-8; it looks like CP1252.*iconv"),
        ("1.caption", "a disc".encode("utf-16-le"), r"1\.caption:1: a NUL byte: UTF-16 without"),
        ("1.json", b"[1", r"1\.json: not valid JSON"),
        ("1.json", b'{"shapes": []}', r"1\.json: no caption under 'text'; it has shapes"),
        ("1.json", b'["a"]', r"1\.json: expected a JSON object"),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_fault_of_its_row(two, name, data, message):
    write(two / f"images/{name}", data)
    for source in forms(two):
        with pytest.raises(InputError, match=message):
            check(read_rows(str(source)))
        assert len(check(read_rows(str(source)), "skip").rows) == 3


# ------------------------------------------------------------------ what lies in folders beside data


HELPERS = [".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png/THUMB.jpg", "__MACOSX/0.png", "._0.png", ".DS_Store"]
HELPERS += ["Thumbs.db", "desktop.ini", ".thumbnails/1.png", "#recycle/old.png"]


def test_what_programs_leave_is_never_data(two):
    for name in HELPERS:
        write(two / "images" / name, png(9))
        write(two / "conditions" / name, png(9, True))
    for source in forms(two):
        report = check(read_rows(str(source)))
        assert len(report.rows) == 4 and report.notes == [], source


def test_linked_folders_and_loops(two, tmp_path):
    shutil.move(two / "conditions", tmp_path / "elsewhere")
    (two / "conditions").symlink_to(tmp_path / "elsewhere")
    (two / "images/more").symlink_to(two / "images")  # a loop
    assert len(read_rows(str(two))) == 4
    (two / "images/3.png").unlink()
    (two / "images/3.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"images/3\.png: missing"):
        check(read_rows(str(two)))
    assert len(check(read_rows(str(two)), "skip").rows) == 3


def test_files_that_nothing_reads_are_named(two, records):
    write(two / "images/0.cls", "1"), write(two / "images/1.cls", "1"), write(two / "captions/0.txt", "x")
    write(two / "README.md", "about")
    told = [note.text for note in read_rows(str(two)).notes]
    assert told == [
        f"{two}/captions/0.txt: not read",
        f"{two}/images/0.cls: not read, nor 1 more files .cls beside it",
    ]
    write(two / "metadata.jsonl", jsonl(records)), write(two / "metadata.csv", "x\n"), write(two / "more/9.png", png(9))
    rows = read_rows(str(two))
    told = " ".join(note.text for note in rows.notes)
    assert "metadata.csv: not read" in told and "more/9.png: not read" in told and rows.orphans == []


def test_a_raw_photo_beside_its_jpeg_is_named_and_alone_it_is_a_fault(two):
    write(two / "images/0.dng", b"raw"), write(two / "images/1.heic", b"heic")
    rows = read_rows(str(two))
    assert len(rows) == 4 and {note.text for note in rows.notes} == {
        f"{two}/images/0.dng: not read",
        f"{two}/images/1.heic: not read",
    }
    write(two / "images/7.heic", b"heic"), write(two / "conditions/7.png", png(7, True))
    with pytest.raises(InputError, match=r"7\.heic: .*pillow-heif"):
        check(read_rows(str(two)))


# ------------------------------------------------------------------ tar archives


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_names_with_several_dots_are_read_where_they_make_whole_samples(tmp_path):
    files = {}
    for number, stem in enumerate(("img.v2", "img.v3", "0.5_scale", "plain")):
        files |= {f"{stem}.png": png(number), f"{stem}.cond.png": png(number, True), f"{stem}.txt": stem.encode()}
    assert sorted(texts(tar_of(tmp_path / "a.tar", files))) == [("0.5_scale",), ("img.v2",), ("img.v3",), ("plain",)]
    only = {name: data for name, data in files.items() if "cond" not in name}
    rows = read_rows(str(tar_of(tmp_path / "b.tar", only)), conditioning_image_column=None)
    assert len(rows) == 4


def test_members_that_no_sample_has_are_named(tmp_path):
    files = {"0.png": png(0), "0.cond.png": png(0, True), "0.v2.png": png(1), "0.cls": b"1", "1.depth.png": png(1)}
    rows = read_rows(str(tar_of(tmp_path / "a.tar", files)))
    told = " ".join(note.text for note in rows.notes)
    assert len(rows) == 1 and all(name in told for name in ("0.v2.png", "0.cls"))
    assert "1 more files .png" in told
    only = read_rows(str(tmp_path / "a.tar"), conditioning_image_column=None)
    assert [row.image.name for row in only] == ["0.png"]  # a depth map is no picture


def test_links_and_empty_archives(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in {"0.png": png(0), "0.cond.png": png(0, True)}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for kind, name in ((tarfile.LNKTYPE, "1.png"), (tarfile.SYMTYPE, "2.png")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "0.png"
            archive.addfile(entry)
    assert len(read_rows(str(tmp_path / "a.tar"), conditioning_image_column=None)) == 3
    tar_of(tmp_path / "b.tar", {})
    rows = read_rows(str(tmp_path), conditioning_image_column=None)
    assert len(rows) == 3 and f"{tmp_path}/b.tar: holds no files" in [note.text for note in rows.notes]
    with pytest.raises(InputError, match=r"b\.tar: holds no rows"):
        read_rows(str(tmp_path / "b.tar"))
    (tmp_path / "c.tar").touch()
    with pytest.raises(InputError, match=r"c\.tar: not an uncompressed tar archive"):
        read_rows(str(tmp_path / "c.tar"))


# ------------------------------------------------------------------ bad rows


def spoil(records: list[dict]) -> str:
    """Six bad rows of ten, each of another kind."""
    good = [dict(records[n % 4]) for n in range(10)]
    good[1]["text"] = None
    del good[3]["text"]
    good[4]["file_name"] = ""
    del good[5]["conditioning_image_file_name"]
    good[7]["file_name"] = "images/gone.png"
    return jsonl(good) + '{"file_name": "images/3.png", "cond'


@pytest.mark.parametrize("name", ["pairs.jsonl", "metadata.jsonl"])
def test_all_bad_rows_are_named_at_once_or_left_out(two, records, name):
    path = write(two / name, spoil(records))
    source = two if name == "metadata.jsonl" else path
    with pytest.raises(InputError) as refused:
        check(read_rows(str(source)))
    message = str(refused.value)
    assert message.startswith("6 faults in 11 rows")
    assert all(f"{path}:{line}: " in message for line in (2, 4, 5, 6, 11)) and "images/gone.png: missing" in message
    report = check(read_rows(str(source)), "skip")
    assert len(report.rows) == 5 and "11 rows checked, 5 good; 6 faults" in report.summary()


def test_many_bad_rows_are_bounded_and_none_left_is_refused(two, records):
    path = write(two / "pairs.jsonl", jsonl([{**records[0], "text": None}] * 200))
    with pytest.raises(InputError, match=r"no row of 200 can be used(?s:.*)pairs.jsonl:1: (?s:.*)and 150 more"):
        read_rows(str(path))


@pytest.mark.parametrize("form", ["jsonl", "csv", "two"])
def test_rows_given_several_times_are_noted(two, records, form):
    if form == "two":
        write(two / "images/9.png", png(0)), write(two / "conditions/9.png", png(0, True))
        assert [note.kind for note in check(read_rows(str(two))).notes] == ["same bytes"]
        return
    lines = [records[0], *records, records[0]]
    head = ",".join(records[0])
    text = jsonl(lines) if form == "jsonl" else "\n".join([head, *(",".join(line.values()) for line in lines)])
    report = check(read_rows(str(write(two / f"pairs.{form}", text))))
    assert len(report.rows) == 6 and [note.kind for note in report.notes] == ["duplicate"] * 2


def test_a_repeat_of_a_row_kept_aside_is_not_learnt(two, records):
    rows = read_rows(str(write(two / "pairs.jsonl", jsonl(records * 10))))
    learnt, aside = hold_out(len(rows), 2, seed=0)
    kept = without_repeats(rows, learnt, aside)
    assert not {rows[at].image for at in kept} & {rows[at].image for at in aside} and kept
    assert without_repeats(rows[:4], [0, 1, 2], [3]) == [0, 1, 2]


# ------------------------------------------------------------------ tables


def separated(records: list[dict], separator: str, end: str = "\n") -> str:
    return end.join(separator.join(line) for line in [list(records[0]), *(list(record.values()) for record in records)])


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("a.tsv", lambda r: separated(r, "\t")),
        ("a.csv", lambda r: separated(r, ";", "\r\n")),
        ("a.csv", lambda r: separated(r, "|")),
        ("a.csv", lambda r: separated(r, ", ")),
        ("A.CSV", lambda r: "\ufeff" + separated(r, ",", "\r\n")),
        ("a.csv", lambda r: separated(r, ",").encode("utf-16")),
        ("a.json", lambda r: json.dumps(r, indent=2)),
        ("a.jsonl", lambda r: json.dumps(r)),
        ("a.json", lambda r: jsonl(r)),
        ("a.csv", lambda r: separated(r, ",").replace("/", "\\")),
        ("metadata.jsonl", lambda r: jsonl(r).replace("/", "\\\\")),
        ("metadata.tsv", lambda r: separated(r, "\t")),
        ("metadata.json", lambda r: json.dumps(r)),
    ],
)
def test_tables_of_every_kind(two, records, name, convert):
    path = write(two / name, convert(records))
    rows = read_rows(str(two if name.startswith("metadata") else path))
    assert [row.text for row in rows] == [f"disc {n}" for n in range(4)]
    assert len(check(rows).rows) == 4


def test_absolute_paths_and_names_of_another_normal_form(two, records):
    place = unicodedata.normalize("NFD", "été")
    for number in range(4):
        write(two / place / f"café {number}.png", png(number))
        records[number]["file_name"] = f"été/café {number}.png"
    records[3]["file_name"] = str(two / place / "café 3.png")
    report = check(read_rows(str(write(two / "pairs.jsonl", jsonl(records)))))
    assert len(report.rows) == 4
    write(two / "images/naïve.png", png(8))
    write(two / "conditions" / f"{unicodedata.normalize('NFD', 'naïve')}.png", png(8, True))
    write(two / "images" / f"{unicodedata.normalize('NFD', 'naïve')}.txt", "decomposed")
    assert ("decomposed",) in texts(two)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'file_name,text\nimages/0.png,"a disc\nimages/1.png,b\n', r"a\.csv:2: unexpected end of data"),
        ("a.csv", "file_name,text\nimages/0.png,a big, red disc\n", r"a\.csv:2: 1 cells more than the first line"),
        ("a.json", '[{"file_name": "images/0.png"},\n {"file', r"a\.json:2: not valid JSON"),
        ("a.json", '[{"file_name": "images/0.png", "text": "x"}, 5]', r"a\.json\[1\]: expected a JSON object"),
        ("a.jsonl", '{"file_name": "https://x.org/0.png", "text": "x"}', r"not a local file; download it"),
        ("a.jsonl", '{"file_name": "images/\\u0000.png", "text": "x"}', r"a NUL character"),
        ("a.jsonl", '{"file_name": 5, "text": "x"}', r"a\.jsonl:1: no 'file_name'; 'file_name' is 5"),
        ("a.jsonl", '{"file_name": "' + "x" * 5000 + '.png", "text": "x"}', r"cannot be read"),
        ("a.jsonl", '{"file_name": "images/0.png", "text": "\\ud800"}', r"a\.jsonl:1: JSON that cannot be read"),
    ],
)
def test_rows_that_cannot_be_told_are_named(two, name, text, message):
    with pytest.raises(InputError, match=message):
        check(read_rows(str(write(two / name, text)), conditioning_image_column=None))


# ------------------------------------------------------------------ zip archives


def test_zips_with_a_table_and_inside_one_folder(two, records, tmp_path):
    write(two / "metadata.jsonl", jsonl(records))
    expected = check(read_rows(str(two))).digest
    for top in ("", "pairs/"):
        path = pack_zip(tmp_path / f"{top.strip('/')}all.zip", two, top)
        assert check(read_rows(str(path))).digest == expected
    (tmp_path / "beside").mkdir()
    shutil.move(tmp_path / "all.zip", tmp_path / "beside/images.zip")
    shutil.copy(two / "metadata.jsonl", tmp_path / "beside")
    assert check(read_rows(str(tmp_path / "beside"))).digest == expected
    write(two / "metadata.jsonl", jsonl([*records, {**records[0], "file_name": "images/gone.png"}]))
    with pytest.raises(InputError, match=r"metadata\.jsonl:5: images/gone\.png is not in the archive"):
        check(read_rows(str(pack_zip(tmp_path / "less.zip", two))))


def test_zips_that_cannot_be_read(two, tmp_path):
    path = pack_zip(tmp_path / "a.zip", two)
    write(tmp_path / "cut.zip", path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cut\.zip: not a whole zip archive"):
        read_rows(str(tmp_path / "cut.zip"))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InputError, match=r"empty\.zip has no folder 'image' .*it has no files"):
        read_rows(str(tmp_path / "empty.zip"))


# ------------------------------------------------------------------ splits, snapshots, Arrow


def test_of_folders_of_splits_train_is_read(two, records, tmp_path):
    for split in ("train", "Test", "validation"):
        shutil.copytree(two, tmp_path / f"set/{split}")
        write(tmp_path / f"set/{split}/metadata.jsonl", jsonl(records))
    rows = read_rows(str(tmp_path / "set"))
    assert len(rows) == 4 and all("/train/" in str(row.image) for row in rows)
    assert [note.text for note in rows.notes] == [f"{tmp_path}/set: train/ is read, not Test, validation"]
    shutil.rmtree(tmp_path / "set/train")
    with pytest.raises(InputError, match=r"it has the folders Test, validation; name the one to train on"):
        read_rows(str(tmp_path / "set"))


def test_of_splits_inside_two_folders_train_is_read(two, tmp_path):
    for folder in ("images", "conditions"):
        for split in ("train", "test"):
            shutil.copytree(two / folder, tmp_path / f"set/{folder}/{split}")
    rows = read_rows(str(tmp_path / "set"))
    assert len(rows) == 4 and "split 'train' is read, not test" in rows.notes[0].text and rows.orphans == []


def test_tars_named_by_splits(two, tmp_path):
    (tmp_path / "shards").mkdir()
    pack_tar(tmp_path / "shards/train-0.tar", two), pack_tar(tmp_path / "shards/test-0.tar", two)
    rows = read_rows(str(tmp_path / "shards"))
    assert len(rows) == 4 and "not test (1 files)" in rows.notes[-1].text


def table(two: Path, records: list[dict], kinds: dict | None = None):
    """An Arrow table of pictures, with captions of a kind."""
    pa = pytest.importorskip("pyarrow")
    columns = {
        "image": pa.array([(two / record["file_name"]).read_bytes() for record in records]),
        "conditioning_image": pa.array([(two / r["conditioning_image_file_name"]).read_bytes() for r in records]),
        "text": pa.array([record["text"] for record in records]),
    }
    return pa.table({**columns, **(kinds or {})})


@pytest.fixture
def pq(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is an extra: pip install diffusers_ext[data]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return pytest.importorskip("pyarrow.parquet")


def test_snapshots_of_the_hub(two, records, pq, tmp_path):
    place = tmp_path / "snapshot [v2]"
    (place / "data").mkdir(parents=True)
    write(place / "README.md", "---\nlicense: mit\n---\n")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation"):
        pq.write_table(table(two, records), place / f"data/{name}.parquet")
    for source in (place, place / "data"):
        rows = read_rows(str(source))
        assert len(rows) == 8 and rows.notes[-1].text.endswith("not test (1 files), val (1 files)")
        assert len(parquet_files(str(source)).files) == 2
    assert len(read_rows(f"{place}/data/train-*.parquet")) == 8
    assert len(read_rows(f"{place}/data/test-00000-of-00001.parquet")) == 4  # asked for by name
    for path in (place / "data").glob("train*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no split 'train'; it has test \(1 files\), val \(1 files\)"):
        read_rows(str(place))


def test_configurations_of_a_snapshot(two, records, pq, tmp_path):
    for config, count in (("large", 4), ("small", 2)):
        (tmp_path / f"set/{config}").mkdir(parents=True)
        pq.write_table(table(two, records[:count]), tmp_path / f"set/{config}/train-0.parquet")
    with pytest.raises(InputError, match=r"files in several folders \(large, small\); name one of them"):
        read_rows(str(tmp_path / "set"))
    assert len(read_rows(str(tmp_path / "set"), config="small")) == 2


def test_kinds_of_arrow_columns(two, records, pq, tmp_path):
    import pyarrow as pa

    captions = [record["text"] for record in records]
    kinds = {kind: pa.array(captions, getattr(pa, kind)()) for kind in ("large_string", "string_view")}
    kinds |= {"dictionary": pa.array(captions).dictionary_encode()}
    for kind, values in kinds.items():
        pq.write_table(table(two, records, {"text": values}), tmp_path / f"{kind}.parquet")
        assert texts(tmp_path / f"{kind}.parquet") == [(caption,) for caption in captions]
        names = {
            "image": pa.array([r["file_name"] for r in records]).cast(
                values.type if kind != "dictionary" else pa.string()
            )
        }
        pq.write_table(table(two, records, names), two / "paths.parquet")
        assert [row.image for row in read_rows(str(two / "paths.parquet"))] == [
            two / f"images/{n}.png" for n in range(4)
        ]
    several = pa.array([[caption, "x"] for caption in captions], pa.large_list(pa.string()))
    pq.write_table(table(two, records, {"text": several}), tmp_path / "lists.parquet")
    assert texts(tmp_path / "lists.parquet") == [(caption, "x") for caption in captions]


def test_nulls_and_paths_in_arrow_columns(two, records, pq):
    import pyarrow as pa

    for name, values in {
        "image": pa.array([None, (two / "images/1.png").read_bytes(), None, b"x"]),
        "conditioning_image": pa.array(["conditions/0.png", None, "conditions\\2.png", "conditions/3.png"]),
        "text": pa.array(["a", None, "b", None]),
    }.items():
        pq.write_table(table(two, records, {name: values}), two / "pairs.parquet")
        with pytest.raises(InputError, match=r"pairs\.parquet\[\d\]: no "):
            check(read_rows(str(two / "pairs.parquet")))
        assert 1 <= len(check(read_rows(str(two / "pairs.parquet")), "skip").rows) <= 3
    cell = pa.array([{"bytes": None, "path": r["file_name"]} for r in records])
    pq.write_table(table(two, records, {"image": cell}), two / "relative.parquet")
    assert len(check(read_rows(str(two / "relative.parquet"))).rows) == 4
    pq.write_table(table(two, records, {"image": pa.array([1, 2, 3, 4])}), two / "numbers.parquet")
    with pytest.raises(InputError, match=r"holds .*int64.*, neither pictures nor paths"):
        read_rows(str(two / "numbers.parquet"))


def test_tables_of_names_in_parquet_and_arrow_files(two, records, pq, tmp_path):
    import datasets

    data = datasets.Dataset.from_list(records)
    data.to_parquet(str(two / "metadata.parquet"))
    expected = check(read_rows(str(two))).digest
    (two / "metadata.parquet").unlink()
    write(two / "metadata.csv", separated(records, ","))
    assert check(read_rows(str(two))).digest == expected
    data.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "saved").glob("*.arrow"):
        shutil.copy(path, two / "pairs.arrow")
    assert check(read_rows(str(two / "pairs.arrow"))).digest == expected
    for name in ("bad.parquet", "bad.arrow"):
        with pytest.raises(InputError, match=rf"{name}: not a whole"):
            read_rows(str(write(two / name, b"PAR1 nonsense")))


# ------------------------------------------------------------------ streams


def test_streams_that_are_tiny_empty_or_partly_bad(two, records, pq, tmp_path):
    import pyarrow as pa

    columns = Columns("image", "text", "conditioning_image")
    pq.write_table(table(two, records, {"text": pa.array(["a", None, "c", "d"])}), tmp_path / "null.parquet")
    made = Stream(str(tmp_path / "null.parquet"), columns, 1, 0, 8, "skip")
    assert [len(made.held_out), len(made.head), len(made.head.faults)] == [1, 2, 1]
    with pytest.raises(InputError, match=r"row 1\]: no caption under 'text'; it is null"):
        check(made.head)
    with pytest.raises(InputError, match="holds 4 rows, of which --held_out_samples keeps 9"):
        Stream(str(tmp_path / "null.parquet"), columns, 9, 0, 8, "skip")
    pq.write_table(table(two, records)[:0], tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="holds 0 rows; nothing to train on"):
        Stream(str(tmp_path / "empty.parquet"), columns, 0, 0, 8, "skip")
    with pytest.raises(InputError, match="holds no rows"):
        read_rows(str(tmp_path / "empty.parquet"))
    assert len(read_rows(str(tmp_path / "*l*.parquet"))) == 3 and len(check(made.head, "skip").rows) == 2
    assert len(Stream(str(tmp_path / "*[ty].parquet").replace("[ty]", "?"), columns, 1, 0, 8, "skip").head) == 2
    write(tmp_path / "cut.parquet", (tmp_path / "null.parquet").read_bytes()[:200])
    with pytest.raises(InputError, match=r"cut\.parquet: "):
        Stream(str(tmp_path / "cut.parquet"), columns, 0, 0, 8, "skip")
    with pytest.raises(InputError, match=r"only \.parquet files and Hub data sets can be streamed"):
        Stream(str(two), columns, 0, 0, 8, "skip")


def test_a_path_that_no_system_takes(tmp_path):
    for source in ("x" * 5000, "a\0b", "[", str(tmp_path / ("y" * 300)), "a/b\0"):
        with pytest.raises(InputError):
            read_rows(source)
    assert os.listdir(tmp_path) == []
