"""Tables, archives and pictures as other programs write them: read whole, or refused by name."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from option_programs import programs
from PIL import Image
from test_row_forms import jsonl, pack_zip, png, write
from test_row_forms import records as records
from test_row_forms import two as two

from diffusers_ext.control.data import read_data
from diffusers_ext.data.files import Columns, load, orientation_of, size_of
from diffusers_ext.data.labelled import read_labelled
from diffusers_ext.data.preflight import check
from diffusers_ext.data.rows import read_rows
from diffusers_ext.data.stream import Stream
from diffusers_ext.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


def table(records: list[dict], separator: str = ",") -> str:
    lines = [separator.join(records[0]), *(separator.join(record.values()) for record in records)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "name, before, separator",
    [
        ("metadata.csv", "sep=;\n", ";"),
        ("metadata.csv", '"sep=;"\r\n', ";"),
        ("metadata.csv", "\n  \n", ","),
        ("metadata.tsv", "\n", "\t"),
        ("METADATA.CSV", "", ","),
    ],
)
def test_what_stands_before_a_tables_columns(two, records, name, before, separator):
    write(two / name, before + table(records, separator))
    rows = read_rows(str(two))
    assert [row.text for row in rows] == [f"disc {n}" for n in range(4)]
    assert rows[0].origin == f"{two / name}:{before.count(chr(10)) + 2}"


@pytest.mark.parametrize("name", ["Metadata.jsonl", "METADATA.JSON"])
def test_a_tables_name_is_read_in_any_case(two, records, name, tmp_path):
    write(two / name, jsonl(records))
    assert [row.text for row in read_rows(str(two))] == [f"disc {n}" for n in range(4)]
    assert len(read_rows(str(pack_zip(tmp_path / "pairs.zip", two)))) == 4
    labelled = [{"file_name": f"images/{n}.png", "label": "ab"[n % 2]} for n in range(4)]
    write(two / name, jsonl(labelled))
    assert read_labelled(two).labels == ("a", "b")


def test_values_given_twice_are_named(two, records):
    rows = [{**record, "note": record["text"]} for record in records]
    write(two / "metadata.csv", table(rows).replace(",note\n", ",text\n"))
    with pytest.raises(InputError, match=r"metadata.csv:1: 2 columns are called 'text'; rename or remove"):
        read_rows(str(two))
    (two / "metadata.csv").unlink()
    write(two / "metadata.jsonl", jsonl(records).replace('"disc 1"', '"disc 1", "text": "another"'))
    (fault,) = read_rows(str(two)).faults
    assert "metadata.jsonl:2" in fault.text and "two values under 'text'" in fault.text


@pytest.mark.parametrize("between", ["\n", ",\n", "\n\n"])
def test_objects_over_several_lines(two, records, between):
    text = between.join(json.dumps(record, indent=2) for record in records)
    write(two / "metadata.jsonl", text)
    rows = read_rows(str(two))
    assert [row.text for row in rows] == [f"disc {n}" for n in range(4)]
    assert [row.origin for row in rows][:2] == [
        f"{two}/metadata.jsonl:1",
        f"{two}/metadata.jsonl:{5 + between.count(chr(10))}",
    ]


FORMS = {
    "data": lambda rows: {"data": rows},
    "images beside others": lambda rows: {"version": "1", "images": rows, "licenses": []},
    "any one list": lambda rows: {"circles": rows},
    "names": lambda rows: {
        row["file_name"]: {name: value for name, value in row.items() if name != "file_name"} for row in rows
    },
    "columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "columns of pandas": lambda rows: {name: {str(at): row[name] for at, row in enumerate(rows)} for name in rows[0]},
    "rows of pandas": lambda rows: {str(at): row for at, row in enumerate(rows)},
    "split of pandas": lambda rows: {
        "columns": [*rows[0]],
        "index": [0, 1, 2, 3],
        "data": [[*row.values()] for row in rows],
    },
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", FORMS)
def test_one_object_that_holds_all_rows(two, records, form, indent):
    write(two / "metadata.json", json.dumps(FORMS[form](records), indent=indent))
    rows = read_rows(str(two))
    assert [(Path(str(row.image)).name, row.text) for row in rows] == [(f"{n}.png", f"disc {n}") for n in range(4)]
    assert len({row.origin for row in rows}) == 4 and all("metadata.json[" in row.origin for row in rows)


def test_an_object_of_names_and_captions(two):
    write(two / "captions.json", json.dumps({f"images/{n}.png": f"disc {n}" for n in range(4)}))
    rows = read_rows(str(two / "captions.json"), conditioning_image_column=None)
    assert [row.text for row in rows] == [f"disc {n}" for n in range(4)]


@pytest.mark.parametrize(
    "value",
    [
        {"train": [{"file_name": "0.png"}], "test": [{"file_name": "1.png"}]},
        {"images": [{"file_name": "0.png"}], "annotations": [{"caption": "a"}]},
        {"file_name": ["0.png", "1.png"], "text": ["a"]},
        {"0.png": "1.png"},
        {"0001": "a disc"},
        {"folder/0001": {"caption": "a disc"}},
        {"data": []},
        {"data": {"rows": [{"file_name": "0.png"}]}},
    ],
)
def test_an_object_that_may_mean_several_things_is_refused_with_the_form_to_write(two, value):
    write(two / "metadata.json", json.dumps(value))
    with pytest.raises(
        InputError, match=r'write a list of rows, or a row a line: \{"file_name": .*; it has \S'
    ) as error:
        read_rows(str(two))
    assert "no row of 1" in str(error.value)


def test_one_row_is_a_row(two, records):
    for row in (records[0], {**records[0], "objects": [{"box": [1, 2]}]}, {**records[0], "text": ["a", "b"]}):
        write(two / "pairs.json", json.dumps(row))
        assert len(read_rows(str(two / "pairs.json"))) == 1
    write(two / "pairs.jsonl", json.dumps({**records[0], "score": float("nan")}))
    assert len(read_rows(str(two / "pairs.jsonl"))) == 1  # NaN is not equal to itself, but not given twice


def test_zips_of_windows_and_inside_several_folders(two, records, tmp_path):
    write(two / "metadata.jsonl", jsonl(records))
    assert len(read_rows(str(pack_zip(tmp_path / "deep.zip", two, "a/b/")))) == 4
    slashed = pack_zip(tmp_path / "slashed.zip", two)
    slashed.write_bytes(slashed.read_bytes().replace(b"images/", b"images\\").replace(b"conditions/", b"conditions\\"))
    assert len(read_rows(str(slashed))) == 4


def test_a_zip_keeps_its_folder_beside_a_table(two, records):
    write(two / "metadata.jsonl", jsonl(records))
    pack_zip(two / "images.zip", two / "images", "images/")
    for file in (two / "images").iterdir():
        file.unlink()
    assert len(check(read_rows(str(two))).rows) == 4


def test_what_an_archive_holds_instead_of_rows_is_named(two, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "folders.tar", "w") as archive:
        archive.add(two, "")
    with pytest.raises(InputError, match=r"holds no rows[\s\S]*folders.tar/conditions/0.png: .* is missing"):
        read_rows(str(tmp_path / "folders.tar"))


@pytest.fixture
def pq():
    pytest.importorskip("datasets")
    return pytest.importorskip("pyarrow.parquet")


def columns() -> dict:
    return {
        "image": [png(n) for n in range(3)],
        "conditioning_image": [png(n, True) for n in range(3)],
        "text": list("abc"),
    }


READERS = {
    "rows": lambda path: check(read_rows(str(path))).rows,
    "stream": lambda path: (
        check(Stream(str(path), Columns("image", "text", "conditioning_image"), 0, 0, 10, "error").head).rows
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_a_column_of_pictures_holds_instead_is_named(pq, tmp_path, reader):
    import pyarrow

    for values in ([1, 2, 3], [[1], [2], [3]], [{"a": 1}] * 3, [{"bytes": 1}] * 3, [True] * 3):
        for name in ("image", "conditioning_image"):
            pq.write_table(pyarrow.table({**columns(), name: values}), tmp_path / "pairs.parquet")
            with pytest.raises(
                InputError, match=rf"pairs\.parquet: column '{name}' holds .*, neither .*--{name}_column"
            ):
                READERS[reader](tmp_path / "pairs.parquet")


@pytest.mark.parametrize("reader", READERS)
def test_the_file_whose_column_is_of_another_kind_is_named(pq, tmp_path, reader):
    import pyarrow

    kinds = {
        "text": [[1, 2, 3], [0.5] * 3, [True] * 3],
        "image": [list("abc"), [{"bytes": b"x", "path": "y"}] * 3],
    }
    for number in (0, 1):
        pq.write_table(pyarrow.table(columns()), tmp_path / f"{number}.parquet")
    for name, others in kinds.items():
        for values in others:
            pq.write_table(pyarrow.table({**columns(), name: values}), tmp_path / "2.parquet")
            with pytest.raises(
                InputError, match=rf"/2\.parquet: column '{name}' holds .*, but in .*/0\.parquet it holds"
            ):
                READERS[reader](tmp_path)
    texts = pyarrow.array(list("abc"))
    for alike in (texts.cast(pyarrow.large_string()), texts.dictionary_encode(), texts.cast(pyarrow.string_view())):
        for first, second in (("0", "1"), ("1", "0")):
            pq.write_table(pyarrow.table({**columns(), "text": alike}), tmp_path / f"{first}.parquet")
            pq.write_table(pyarrow.table(columns()), tmp_path / f"{second}.parquet")
            (tmp_path / "2.parquet").unlink(missing_ok=True)
            assert [row.text for row in READERS[reader](tmp_path)] == list("abcabc")


@pytest.mark.parametrize("reader", READERS)
def test_columns_that_are_not_used_do_not_matter(pq, tmp_path, reader):
    import pyarrow

    maps = pyarrow.array([[("a", 1)]] * 3, pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    for number, more in enumerate([{"about": maps}, {"about": [1, 2, 3]}, {}, {"about": list("abc"), "x": maps}]):
        pq.write_table(pyarrow.table({**columns(), **more}), tmp_path / f"{number}.parquet")
    assert len(READERS[reader](tmp_path)) == 12
    pq.write_table(pyarrow.table({**columns(), "text": maps}), tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"0\.parquet: column 'text' holds map<.*; write .* captions as text"):
        READERS[reader](tmp_path / "0.parquet")
    twice = pyarrow.table([*columns().values(), list("abc")], names=[*columns(), "text"])
    pq.write_table(twice, tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"0\.parquet: 2 columns are called 'text'; rename"):
        READERS[reader](tmp_path / "0.parquet")


def test_arrow_files_and_tables_of_names_with_other_columns(two, records, pq, tmp_path):
    import pyarrow
    from pyarrow import feather

    maps = pyarrow.array([[("a", 1)]] * 3, pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    large = pyarrow.array(list("abc"), pyarrow.large_string())
    feather.write_feather(pyarrow.table({**columns(), "about": maps}), tmp_path / "0.arrow")
    feather.write_feather(pyarrow.table({**columns(), "text": large}), tmp_path / "1.arrow")
    assert [row.text for row in read_rows(str(tmp_path))] == list("abcabc")
    feather.write_feather(pyarrow.table({**columns(), "text": [1, 2, 3]}), tmp_path / "1.arrow")
    with pytest.raises(InputError, match=r"1\.arrow: column 'text' holds int64, but in .*0\.arrow it holds string"):
        read_rows(str(tmp_path))
    about = pyarrow.array([[("a", 1)]] * 4, pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pq.write_table(pyarrow.Table.from_pylist(records).append_column("about", about), two / "metadata.parquet")
    assert len(read_rows(str(two))) == 4


@pytest.mark.parametrize("reader", READERS)
def test_the_damaged_file_of_several_is_named(pq, tmp_path, reader):
    import pyarrow

    for number in range(3):
        pq.write_table(pyarrow.table(columns()), tmp_path / f"{number}.parquet")
    whole = bytearray((tmp_path / "1.parquet").read_bytes())
    whole[60:400] = b"\x99" * 340
    write(tmp_path / "1.parquet", bytes(whole))
    with pytest.raises(InputError, match=r"/1\.parquet: not a whole parquet file"):
        READERS[reader](tmp_path)


@pytest.mark.parametrize("name", ["training", "Train", "train_set", "TRAIN2017"])
def test_the_split_to_train_on_is_known_however_it_is_spelt(two, records, pq, tmp_path, name):
    import datasets

    data = datasets.Dataset.from_list(
        [{name: str(two / value) if value.endswith("png") else value for name, value in row.items()} for row in records]
    )
    datasets.DatasetDict({name: data, "validation": data.select([0])}).save_to_disk(str(tmp_path / "saved"))
    rows = read_rows(str(tmp_path / "saved"))
    assert len(rows) == 4 and any(f"split '{name}' is read, not validation" in note.text for note in rows.notes)
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(
        InputError, match=r"no split 'train'; it has a, b; name the folder of one of them, such as .*/a"
    ):
        read_rows(str(tmp_path / "other"))
    datasets.DatasetDict({"training": data, "Train": data}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match="several splits to train on"):
        read_rows(str(tmp_path / "both"))


def test_pictures_as_objects_of_bytes_alone(pq, tmp_path):
    import pyarrow

    held = columns()
    held["image"] = [{"bytes": data} for data in held["image"]]
    held["conditioning_image"][1] = None
    pq.write_table(pyarrow.table(held), tmp_path / "pairs.parquet")
    rows = read_rows(str(tmp_path / "pairs.parquet"))
    assert len(check(rows, "skip").rows) == 2 and len(rows.faults) == 1


@pytest.mark.parametrize("compression", ["uncompressed", "lz4"])
def test_arrow_files_that_list_their_tables(pq, tmp_path, compression):
    import pyarrow
    from pyarrow import feather

    feather.write_feather(pyarrow.table(columns()), tmp_path / "pairs.arrow", compression=compression)
    assert [row.text for row in read_rows(str(tmp_path / "pairs.arrow"))] == list("abc")


def test_files_of_other_columns_and_missing_parts_are_named(pq, tmp_path):
    import pyarrow

    held = columns()
    for part in (0, 2):
        pq.write_table(pyarrow.table(held), tmp_path / f"train-0000{part}-of-00003.parquet")
    write(tmp_path / "more.csv", "a,b\n")
    notes = [note.text for note in read_rows(str(tmp_path)).notes]
    assert any("2 of 3 files train-*-of-00003 are there" in note for note in notes)
    assert any("more.csv: not read" in note for note in notes)
    held["caption"] = held.pop("text")
    pq.write_table(pyarrow.table(held), tmp_path / "train-00002-of-00003.parquet")
    with pytest.raises(InputError, match=r"train-00002.*alone has: text; this file alone has: caption; rename"):
        read_rows(str(tmp_path))
    with pytest.raises(InputError, match=r"train-00002.*alone has: text"):
        Stream(str(tmp_path), Columns("image", "text", "conditioning_image"), 0, 0, 10, "error")


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.tar", "pairs.zip", "pairs.arrow"])
def test_pointers_of_git_lfs_are_named(tmp_path, name):
    if Path(name).suffix in (".parquet", ".arrow"):
        pytest.importorskip("datasets")
    with pytest.raises(InputError, match=f"{name}: a pointer of Git LFS.*git lfs pull"):
        read_rows(str(write(tmp_path / name, POINTER)))


def test_a_picture_that_is_a_pointer_is_named(two):
    write(two / "images/1.png", POINTER)
    (fault,) = check(read_rows(str(two)), "skip").faults
    assert "images/1.png: a pointer of Git LFS" in fault.text


def late(data: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with a chunk after its pixels."""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:-12] + chunk + data[-12:]


def of_exif() -> tuple[bytes, bytes]:
    exif = Image.Exif()
    exif[0x112] = 6
    return b"eXIf", exif.tobytes()[6:]


def of_xmp() -> tuple[bytes, bytes]:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    return b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp


@pytest.mark.parametrize("chunk", [of_exif, of_xmp])
def test_a_turn_after_the_pixels_of_a_png_counts(two, chunk):
    wide = io.BytesIO()
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(wide, "PNG")
    file = write(two / "wide.png", late(wide.getvalue(), *chunk()))
    assert size_of(file) == load(file).size == (8, 16) and orientation_of(file) == 6
    file.unlink()
    write(two / "images/2.png", late(png(2), *chunk()))
    (fault,) = check(read_rows(str(two)), "skip").faults
    assert fault.kind == "turn" and "images/2.png is 6" in fault.text


@pytest.mark.parametrize("same", ["one file", "copies"])
def test_conditions_that_are_their_own_pictures_are_told(two, records, same):
    if same == "one file":
        write(two / "metadata.jsonl", jsonl(records))
        rows = read_rows(str(two), conditioning_image_column="image")
    else:
        for number in range(4):
            (two / f"conditions/{number}.png").write_bytes((two / f"images/{number}.png").read_bytes())
        rows = read_rows(str(two))
    notes = [note.text for note in check(rows, "skip").notes]
    assert any(
        "4 conditions equal their own pictures" in note and "--conditioning_image_column" in note for note in notes
    )


@pytest.mark.parametrize("wanted, told", [(16, False), (3, True), (100, True), (0, False)])
def test_fewer_rows_kept_aside_than_asked_for_are_told(two, wanted, told):
    options = programs()["training/train_controlnet.py"](
        train_data_dir=str(two), held_out_samples=wanted, resolution=16
    )
    notes = [note.text for note in read_data(options).report.notes]
    assert any(f"--held_out_samples {wanted}: 0 rows are kept aside" in note for note in notes) == told


@pytest.mark.parametrize("copies", [True, False])
def test_copies_of_rows_kept_aside_are_told(two, copies):
    for n in range(20):
        write(two / f"images/{n}.png", png(n % 10 if copies else n))
        write(two / f"conditions/{n}.png", png(n % 10 if copies else n, True))
    options = programs()["training/train_controlnet.py"](train_data_dir=str(two), held_out_samples=2, resolution=16)
    notes = [note.text for note in read_data(options).report.notes if note.kind == "held out"]
    assert len(notes) == copies
    if copies:
        assert "2 of 2 rows kept aside to measure on show a picture that is learnt too" in notes[0]
        assert "which equals" in notes[0] and "remove one of the two" in notes[0]
