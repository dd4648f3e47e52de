"""Labelled folders and tables as people have them: every file is used, left out with a word, or named; tests stay tests."""

import contextlib
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusers_ext.data.files import Row, load
from diffusers_ext.data.labelled import LabelledImages, read_labelled, with_splits
from diffusers_ext.data.names import classify_name, picture_suffixes, walk
from diffusers_ext.data.rows import read_rows
from diffusers_ext.data.splits import check_learnable, on_one_side, split_of, tell_shared, with_tests
from diffusers_ext.errors import InputError
from diffusers_ext.lads.data import split_by_domain

CLASSES = ("cat", "dog")


def picture(path, value: int, form: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), (value % 256, value // 256, 9), np.uint8)).save(path, form)


def fill(root, places, count: int = 4, first: int = 0, suffix: str = ".png"):
    """Different pictures in each of these folders."""
    for number, place in enumerate(places):
        for index in range(count):
            picture(root / place / f"{index}{suffix}", first + number * count + index)
    return root


def silent(*arguments, **settings) -> LabelledImages:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_labelled(*arguments, **settings)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[(name, "picture") for name in ("a.PNG", "a.jfif", "a.b.gif", "a.jp2", "a.ppm", "a.tga", "a.ico", "a.qoi")],
        *[(name, "foreign") for name in ("a.heic", "a.HEIF", "a.jxl", "a.cr2", "a.svg", "a.exr", "a.eps")],
        *[(name, "helper") for name in ("._a.png", ".DS_Store", "Thumbs.db", "@eaDir", "__MACOSX", "DESKTOP.INI")],
        *[(name, "other") for name in ("a.pdf", "a.mp4", "a.ttf", "a.txt", "a", "a.png.part", "a.mpg")],
        ("features.npy", "array"),
    ],
)
def test_names_say_what_a_file_is(name, kind):
    assert classify_name(name) == classify_name(f"folder/{name}") == kind


def test_a_plug_in_that_registers_is_used(monkeypatch):
    extensions = {**Image.registered_extensions(), ".heic": "HEIF"}
    monkeypatch.setattr(Image, "registered_extensions", lambda: extensions)
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None))
    assert classify_name("a.heic") == "picture"


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".jp2", ".ppm", ".tga", ".ico", ".apng", ".avif"])
def test_every_ending_that_pillow_reads_is_a_picture_in_every_form(tmp_path, suffix):
    if suffix not in picture_suffixes():
        pytest.skip(f"this Pillow does not read {suffix}")
    for folder in ("cat", "dog", "pairs/images", "pairs/conditions"):
        for number in range(2):
            draw = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            path = tmp_path / folder / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw).save(path, {".jfif": "JPEG", ".apng": "PNG"}.get(suffix))
    pairs = tmp_path / "pairs"
    assert len(read_rows(str(pairs))) == 2
    shutil.move(pairs, tmp_path.parent / f"{tmp_path.name}-pairs")
    table = silent(tmp_path)
    assert len(table) == 4 and load(table.files[0]).mode == "RGB"


# ---------------------------------------------------------------- trees


def test_helpers_are_no_classes_and_other_files_are_told(tmp_path):
    fill(tmp_path, CLASSES)
    for place in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "dog/.thumbnails", "dog/@eaDir"):
        picture(tmp_path / place / "x.png", 200)
    for name in ("Thumbs.db", ".DS_Store", "dog/._0.png"):
        (tmp_path / name).write_bytes(b"x")
    assert silent(tmp_path).labels == CLASSES and len(silent(tmp_path)) == 8
    np.save(tmp_path / "dog/features.npy", np.zeros((3, 4)))
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match=r"left out 1 \.md, 1 \.npy") as told:
        assert len(read_labelled(tmp_path)) == 8
    assert any("without pictures: empty" in str(each.message) for each in told)


def test_links_are_followed_and_loops_end(tmp_path):
    root = fill(tmp_path / "real", CLASSES)
    links = tmp_path / "links"
    links.mkdir()
    for name in CLASSES:
        os.symlink(root / name, links / name)
    os.symlink(links, links / "dog" / "loop")
    os.symlink(root / "dog" / "0.png", root / "cat" / "linked.png")
    assert len(silent(links)) == 9 and len(list(walk(links))) == 3
    os.symlink(tmp_path / "gone", links / "bird")
    with pytest.raises(InputError, match="bird: a link to nothing"):
        read_labelled(links)


@pytest.mark.parametrize("name", ["photo.heic", "photo.JXL", "raw.nef"])
def test_pictures_that_need_more_are_named(tmp_path, name):
    fill(tmp_path, CLASSES)
    (tmp_path / "dog" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"dog/{name}: .*(pip install|convert)"):
        read_labelled(tmp_path)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAINING training_set train2017 trainset"),
        ("val", "val Valid VALIDATION dev Development val2017 crossval"),
        ("test", "test Testing TEST eval Evaluation test_images holdout held-out"),
        (None, "dog trainer testify contest steam-train 0 photo"),
    ],
)
def test_splits_are_known_by_any_name(split, names):
    assert {split_of(name) for name in names.split()} == {split}


@pytest.mark.parametrize(
    "places",
    [
        ("{split}/{label}", "photo"),
        ("{split}/sketch/{label}", "sketch"),
        ("sketch/{split}/{label}", "sketch"),
        ("{label}/{split}", "photo"),
    ],
)
@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "EVAL"), ("train_set", "test_set")])
def test_folders_of_splits_stand_at_any_level(tmp_path, places, names):
    form, domain = places
    fill(tmp_path / "photo", [form.format(split=split, label=label) for split in names for label in CLASSES])
    table = silent(tmp_path / "photo")
    assert table.labels == CLASSES and table.domains == (domain,)
    assert len(table.indices(split="train")) == len(table.indices(split="test")) == 8


def test_a_test_folder_beside_classes_is_refused_and_a_train_is_a_class(tmp_path):
    vehicles = fill(tmp_path / "vehicles", ("car", "plane", "train"))
    assert silent(vehicles).labels == ("car", "plane", "train")
    fill(vehicles, ("test",), first=90)
    with pytest.raises(InputError, match="a folder test beside car: a split or a class"):
        read_labelled(vehicles)
    kaggle = fill(tmp_path / "kaggle", ("train/dog", "train/cat", "test"))
    with pytest.raises(InputError, match=r"kaggle/test: pictures of a split in no folder of a class"):
        read_labelled(kaggle)


@pytest.mark.parametrize("names", [("Train", "Test"), ("train", "holdout"), ("TRAINING", "eval"), ("train", "valid")])
def test_marked_test_rows_are_never_learnt(tmp_path, names):
    fill(tmp_path, CLASSES, 6)
    rows = [{"file_name": f"{c}/{n}.png", "label": c, "split": names[n % 3 == 0]} for c in CLASSES for n in range(6)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = with_tests(read_labelled(tmp_path), 0.2)
    assert [sample.split == "test" for sample in table.samples] == [n % 3 == 0 for _ in CLASSES for n in range(6)]


def test_equal_pictures_stay_on_one_side(tmp_path):
    fill(tmp_path / "weeks", [f"week{week}/{label}" for week in (1, 2) for label in CLASSES], 10)
    for number in range(10):  # week 2 repeats the dogs of week 1 under other names
        shutil.copy(tmp_path / f"weeks/week1/dog/{number}.png", tmp_path / f"weeks/week2/dog/again{number}.png")
    table = with_tests(read_labelled(tmp_path / "weeks"), 0.3, seed=1)
    sides: dict[bytes, set] = {}
    for sample in table.samples:
        sides.setdefault(sample.file.read_bytes(), set()).add(sample.split)
    assert len(sides) == 40 and all(len(side) == 1 for side in sides.values())

    split = fill(tmp_path / "split", ("train/cat", "train/dog", "test/cat", "test/dog"))
    shutil.copy(split / "test/dog/0.png", split / "train/dog/copy.png")
    with pytest.warns(UserWarning, match=r"1 pictures of split train equal pictures of split test .*copy\.png"):
        sided = on_one_side(read_labelled(split))
    assert [s.split for s in sided.samples if s.file.name == "copy.png"] == ["test"] and len(sided) == 17


def test_lads_measures_no_target_on_what_it_learnt(tmp_path):
    fill(tmp_path, [f"{domain}/{label}" for domain in ("photo", "sketch") for label in CLASSES], 10)
    for number in range(10):
        shutil.copy(tmp_path / f"photo/dog/{number}.png", tmp_path / f"sketch/dog/copy{number}.png")
        picture(tmp_path / f"photo/dog/more{number}.png", 500 + number)

    def embed(part):
        import torch

        return torch.from_numpy(np.stack([np.asarray(load(file), np.float32).ravel() + 1 for file in part.files]))

    with pytest.warns(UserWarning, match="byte for byte"):
        splits = split_by_domain(read_labelled(tmp_path), "photo", ["sketch"], embed)
    learnt = {file.read_bytes() for file in splits.train.files}
    assert not learnt & {file.read_bytes() for file in splits.out_of_domain["sketch"].files}


def test_one_class_and_unknown_splits_are_refused(tmp_path):
    with pytest.raises(InputError, match="one class, 'imgs'"):
        check_learnable(read_labelled(fill(tmp_path / "shop", ("imgs",))))
    fill(tmp_path, CLASSES)
    (tmp_path / "metadata.csv").write_text("file_name,label,split\ncat/0.png,cat,fold3\ndog/0.png,dog,train\n")
    with pytest.raises(InputError, match=r"metadata\.csv:2: split 'fold3' is none of train, val and test"):
        check_learnable(read_labelled(tmp_path))


def test_shared_pictures_are_told(tmp_path):
    files = sorted(fill(tmp_path, CLASSES).rglob("*.png"))
    with pytest.warns(UserWarning, match="2 of 2 pictures of birds are trained on too"):
        tell_shared(files, {"birds": files[:2]})


# ---------------------------------------------------------------- tables


def write_table(path, rows: list[dict]) -> None:
    header, suffix = list(rows[0]), path.suffix
    separator = {".tsv": "\t"}.get(suffix, ";" if path.stem == "semicolons" else ",")
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(str(path))
    else:
        lines = [separator.join(header), *(separator.join(row.values()) for row in rows)]
        path.write_bytes((b"\xef\xbb\xbf" if path.stem == "bom" else b"") + "\r\n".join(lines).encode())


def rows_of(root, image: str = "file_name", label: str = "label") -> list[dict]:
    return [{image: str(f.relative_to(root)), label: f.parent.name} for f in sorted(root.glob("*/*.png"))]


@pytest.mark.parametrize(
    "name", ["t.csv", "bom.csv", "semicolons.csv", "t.tsv", "t.json", "t.jsonl", "t.parquet", "UPPER.CSV"]
)
def test_tables_of_any_kind_are_the_same(tmp_path, name):
    fill(tmp_path, CLASSES)
    write_table(tmp_path / name, rows_of(tmp_path))
    table = silent(tmp_path / name)
    assert len(table) == 8 and table.labels == CLASSES


def test_parquet_holds_pictures_and_numbered_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    fill(tmp_path, CLASSES)
    files = sorted(tmp_path.glob("*/*.png"))
    columns = {"image": [str(file) for file in files], "label": [int(file.parent.name == "dog") for file in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "t.parquet"))
    table = read_labelled(tmp_path / "t.parquet")
    assert [sample.label for sample in table.samples] == ["cat"] * 4 + ["dog"] * 4
    assert np.array_equal(np.asarray(load(table.files[5])), np.asarray(load(files[5])))


def test_columns_are_named_where_they_are_called_otherwise(tmp_path):
    fill(tmp_path, CLASSES)
    write_table(tmp_path / "t.csv", rows_of(tmp_path, "path", "category"))
    for wanted, more in (("image_column", {}), ("label_column", {"image_column": "path"})):
        with pytest.raises(InputError, match=rf"t\.csv:2: .*it has path, category; .*{wanted}") as error:
            read_labelled(tmp_path / "t.csv", **more)
        assert "7 more such rows" in str(error.value) and "\n" not in str(error.value)
    assert len(read_labelled(tmp_path / "t.csv", label_column="category", image_column="path")) == 8


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", "file_name,label\ncat/0.png,caf\xe9".encode("cp1252"), "CP1252"),
        ("t.json", b'{"columns": 1}', "no 'file_name'"),
        ("t.json", b"[1, 2]", "expected a JSON object"),
        ("t.json", b"[", "not valid JSON"),
        ("t.parquet", b"PAR1 no", "not a whole parquet file"),
        ("t.xlsx", b"PK", "no table"),
        ("t.csv", b"file_name,label\nc" + b"x" * 5000 + b",dog", "missing"),
        ("t.csv", b"", "holds no labelled pictures"),
    ],
)
def test_tables_that_cannot_be_read_say_so(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_labelled(tmp_path / name)


def test_paths_of_windows_are_read(tmp_path):
    fill(tmp_path, CLASSES)
    (tmp_path / "t.csv").write_text("file_name,label\ncat\\0.png,cat\ndog\\1.png,dog\n")
    assert [sample.file.name for sample in read_labelled(tmp_path / "t.csv").samples] == ["0.png", "1.png"]


@pytest.mark.parametrize("place", ["imgs", ""])
def test_a_table_beside_one_folder_of_pictures_is_the_table(tmp_path, place):
    fill(tmp_path, (place or ".",), 6)
    rows = [{"file_name": os.path.join(place, f"{n}.png"), "label": CLASSES[n % 2]} for n in range(6)]
    write_table(tmp_path / "products.csv", rows)
    with pytest.warns(UserWarning, match=r"read as products\.csv says"):
        assert read_labelled(tmp_path).labels == CLASSES
    write_table(tmp_path / "products.csv", [{"path": "imgs/0.png", "category": "dog"}])
    with pytest.raises(InputError, match="it has path, category"):
        read_labelled(tmp_path)


def test_tables_of_splits_and_tables_that_disagree_with_folders(tmp_path):
    fill(tmp_path / "a", ("images",), 6)
    for name, numbers in (("train.csv", (0, 1, 2, 3)), ("Test.csv", (4, 5))):
        rows = [{"file_name": f"images/{n}.png", "label": CLASSES[n % 2]} for n in numbers]
        write_table(tmp_path / "a" / name, rows)
    with pytest.warns(UserWarning, match=r"Test\.csv, train\.csv"):
        table = read_labelled(tmp_path / "a")
    assert len(table.indices(split="train")) == 4 and len(table.indices(split="test")) == 2
    fill(tmp_path / "b", ("images", "masks"))
    write_table(tmp_path / "b/labels.csv", [{"file_name": "images/0.png", "label": "dog"}])
    with pytest.raises(InputError, match=r"labels\.csv and the folders name different classes"):
        read_labelled(tmp_path / "b")


def test_a_table_in_each_split_folder(tmp_path):
    fill(tmp_path, ("Train/imgs", "test/imgs"))
    for part in ("Train", "test"):
        rows = [{"file_name": f"imgs/{n}.png", "label": CLASSES[n % 2]} for n in range(4)]
        write_table(tmp_path / part / "metadata.jsonl", rows)
    table = silent(tmp_path)
    assert table.labels == CLASSES and len(table.indices(split="test")) == 4


@pytest.mark.parametrize("text", ["remember to add dogs\n", "", "see page 7\n"])
def test_notes_that_are_named_like_lists_are_notes(tmp_path, text):
    fill(tmp_path, CLASSES)
    (tmp_path / "notes_train.txt").write_text(text)
    with pytest.warns(UserWarning, match=r"left out 1 \.txt"):
        assert len(read_labelled(tmp_path)) == 8


def test_with_splits_is_as_before_where_nothing_is_repeated(tmp_path):
    fill(tmp_path, [f"{domain}/{label}" for domain in ("a", "b") for label in CLASSES], 10)
    counts = with_splits(read_labelled(tmp_path), {"train": 0.8, "test": 0.2}).counts()
    assert set(counts.values()) == {8, 2}


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
CELLS = st.one_of(st.none(), st.integers(), TEXT, st.sampled_from(["cat/0.png", "dog/1.png", "../x.png"]))
ROWS = st.lists(st.dictionaries(st.sampled_from(["file_name", "label", "split", "domain", ""]), CELLS), max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["t.csv", "t.tsv", "t.json", "t.jsonl", "metadata.csv", "a_train.txt"]),
    content=st.one_of(
        st.binary(max_size=80),
        TEXT.map(str.encode),
        ROWS.map(lambda rows: json.dumps(rows).encode()),
        ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        st.lists(st.sampled_from(["cat/0.png", ",", "\n", '"', "label", "file_name", "\0", " 7", "\x85"])).map(
            lambda parts: "".join(parts).encode()
        ),
    ),
)
def test_nothing_but_input_errors_leaves_read_labelled(tmp_path, name, content):
    fill(tmp_path, CLASSES, 2)
    for left in tmp_path.iterdir():
        left.is_file() and left.unlink()
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source in (tmp_path, tmp_path / name):
            with contextlib.suppress(InputError):
                assert len(read_labelled(source))


def test_rows_of_heic_are_named(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    from diffusers_ext.data.preflight import check

    with pytest.raises(InputError, match=r"a\.heic: cannot be read .*pip install pillow-heif"):
        check([Row(tmp_path / "a.heic", ("",), None, "row 1")])
