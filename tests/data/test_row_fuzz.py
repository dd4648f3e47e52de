"""Whatever bytes a source holds: rows, or an InputError, and no other exception."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusers_ext.data.preflight import check
from diffusers_ext.data.rows import read_rows
from diffusers_ext.data.texts import read_prompts
from diffusers_ext.errors import InputError

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.sampled_from(
    ["file_name", "image", "text", "conditioning_image", "source", "target", "prompt", "split", "caption", ""]
)
ODD = [
    "",
    "\0",
    "a/../../b.png",
    "/",
    "..",
    "x" * 300,
    "é",
    "e\u0301",
    "\\",
    "C:\\a.png",
    "http://x/y.png",
    "\u2028",
    "~",
    "0.png",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(ODD),
    st.lists(st.one_of(st.text(max_size=4), st.none(), st.integers()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)
RAW = st.sampled_from(
    [
        b"[" * 5000,
        b"9" * 5000,
        b'{"a": "\\ud800"}',
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\0",
        b"\xe9",
        b'"',
        b"\r",
        b"{}",
        b"[]",
    ]
)
LINES = st.one_of(OBJECTS.map(lambda value: json.dumps(value).encode()), st.binary(max_size=20), RAW)
TABLES = st.lists(LINES, max_size=5).map(b"\n".join)
MEMBER_NAMES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(
            [
                "",
                "images/",
                "image/",
                "conditioning_image/",
                "train/images/",
                "./",
                "../",
                "/",
                "@eaDir/",
                "conditions/",
            ]
        ),
        st.sampled_from(["0", "a.b", ".x", "é", "", "x" * 120, "a\u2028", "metadata", "prompt"]),
        st.sampled_from([".png", ".cond.png", ".txt", ".json", ".caption", ".jsonl", ".csv", ".npy", ".heic", ""]),
    ),
)
with io.BytesIO() as stream:
    Image.linear_gradient("L").save(stream, "PNG")
    PNG = stream.getvalue()
MEMBERS = st.dictionaries(MEMBER_NAMES, st.one_of(TABLES, st.binary(max_size=30), st.just(PNG)), max_size=8)


def read(source: Path) -> None:
    """Read and check a source in both ways; anything but rows or an InputError fails the test."""
    for condition in ("conditioning_image", None):
        try:
            check(read_rows(str(source), conditioning_image_column=condition, config="x"), "skip", workers=1)
        except InputError as error:
            assert str(error)


@BOUNDED
@given(
    TABLES,
    st.sampled_from(
        ["a.jsonl", "a.json", "a.csv", "a.tsv", "A.CSV", "a.parquet", "a.arrow", "a.zip", "a.tar", "a.txt"]
    ),
)
def test_files_of_any_bytes(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    read(tmp_path / name)
    try:
        read_prompts(tmp_path / name)
    except InputError as error:
        assert str(error)


@BOUNDED
@given(
    st.lists(st.lists(st.one_of(st.text(max_size=8), NAMES, st.sampled_from(ODD)), max_size=5), max_size=5),
    st.sampled_from(",;\t|"),
)
def test_separated_values(tmp_path, rows, separator):
    text = "\n".join(separator.join(row) for row in [["file_name", "conditioning_image", "text"], *rows])
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    read(tmp_path / "a.csv")


@BOUNDED
@given(MEMBERS, st.integers(0, 4000), st.binary(max_size=8), st.booleans())
def test_archives_whole_and_damaged(tmp_path, members, place, damage, deflated):
    for suffix in (".zip", ".tar"):
        data = pack(members, suffix, deflated)
        for name, content in (
            ("whole", data),
            ("hit", data[:place] + damage + data[place + len(damage) :]),
            ("cut", data[:place]),
        ):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(content)
            read(path)


@BOUNDED
@given(MEMBERS)
def test_folders(tmp_path_factory, members):
    folder = tmp_path_factory.mktemp("folder")
    for name, data in members.items():
        path = folder / name.lstrip("./")
        if path != folder and "x" * 120 not in name:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except OSError:  # a folder has that name
                continue
    read(folder)


@BOUNDED
@given(st.one_of(st.text(max_size=30), st.sampled_from([*ODD, "[", "*", "a[", "a/b", "x/\0", "\ud800", "a/\udcff"])))
def test_sources_of_any_name(source):
    if Path("/").joinpath(source.replace("\0", "")).anchor == "/" and source.startswith(("/", ".", "~")):
        return  # a folder of this machine
    with pytest.raises(InputError):
        read_rows(source)


def pack(members: dict[str, bytes], suffix: str, deflated: bool) -> bytes:
    stream = io.BytesIO()
    if suffix == ".tar":
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    else:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(name or "none", data)
    return stream.getvalue()
