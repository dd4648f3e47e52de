"""Labelled pictures: every form gives the same table, splits follow content, published sets follow their rules."""

import gzip
import json
import shutil
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusers_ext.data.arrays import read_idx, read_svhn
from diffusers_ext.data.files import load
from diffusers_ext.data.labelled import LabelledImages, read_labelled, with_splits
from diffusers_ext.data.published import (
    cifar20,
    colored_mnist,
    cub_paintings,
    digits,
    domainnet_mini,
    follows_rule,
    waterbirds,
)
from diffusers_ext.errors import InputError

DOMAINS, CLASSES = ("photo", "sketch"), ("alarm_clock", "dog")


def picture(path, value: int) -> None:
    """A picture of its own bytes for each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), (value % 256, value // 256, 7), np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Two domains of two classes, ten pictures each, as PACS and Office-Home lie."""
    root, value = tmp_path / "tree", 0
    for domain in DOMAINS:
        for name in CLASSES:
            for number in range(10):
                picture(root / domain / name / f"{number}.png", value := value + 1)
    return root


def plain(table: LabelledImages) -> list[tuple]:
    return [(str(each.file), each.label, each.domain, each.split) for each in table.samples]


def write_lists(tree, numbers=(0, 1)):
    """PACS's lists: the test list of a domain repeats the other two."""
    for domain in DOMAINS:
        lines = [f"{domain}/{name}/{n}.png {number}" for name, number in zip(CLASSES, numbers) for n in range(10)]
        (tree / f"{domain}_train_kfold.txt").write_text("\n".join(line for line in lines if "/9.png" not in line))
        (tree / f"{domain}_crossval_kfold.txt").write_text("\n".join(line for line in lines if "/9.png" in line))
        (tree / f"{domain}_test_kfold.txt").write_text("\n".join(lines) + "\n")


def test_a_tree_a_table_and_lists_are_the_same_data(tree):
    table = read_labelled(tree)
    assert len(table) == 40 and table.labels == ("alarm clock", "dog") and table.domains == DOMAINS
    np.testing.assert_array_equal(np.bincount(table.label_index * 2 + table.domain_index), [10] * 4)

    rows = [{"file_name": str(s.file.relative_to(tree)), "label": s.label, "domain": s.domain} for s in table.samples]
    (tree / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plain(read_labelled(tree)) == plain(table)
    (tree / "metadata.jsonl").unlink()

    write_lists(tree)
    listed = read_labelled(tree)
    assert sorted(row[:3] for row in plain(listed)) == sorted(row[:3] for row in plain(table))
    assert listed.counts() == {
        (domain, name, split): count
        for domain in DOMAINS
        for name in ("alarm clock", "dog")
        for split, count in (("train", 9), ("val", 1))
    }


def test_classes_alone_and_folders_of_splits(tree, tmp_path):
    one = read_labelled(tree / "sketch")
    assert one.domains == ("sketch",) and len(one) == 20
    assert read_labelled(tree / "sketch", domain="drawings").domains == ("drawings",)
    for split in ("train", "test"):
        shutil.copytree(tree, tmp_path / "split" / split)
    split = read_labelled(tmp_path / "split")
    assert split.domains == DOMAINS and len(split.where(split="train", domain="photo")) == 20


def test_a_part_keeps_the_names_of_the_whole(tree):
    table = read_labelled(tree)
    dogs = table.where(label="dog", domain=["sketch"])
    assert len(dogs) == 10 and set(dogs.label_index) == {1} and dogs.labels == table.labels
    assert table.take(table.indices(label="dog", domain="sketch")) == dogs
    with pytest.raises(InputError, match="no picture has domain 'clipart'; there are photo, sketch"):
        table.where(domain="clipart")


def test_splits_are_stratified_and_follow_the_bytes(tree, tmp_path):
    fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    table = with_splits(read_labelled(tree), fractions, seed=3)
    assert set(table.counts().values()) == {6, 2} and len(table.counts()) == 12
    of = {each.file.read_bytes(): each.split for each in table.samples}

    # other names, other order, some pictures twice: the same split, and twins stay together
    other = tmp_path / "other"
    for sample in table.samples:
        name = other / sample.domain / sample.label.replace(" ", "_") / f"x{9 - int(sample.file.stem)}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.file, name)
        if sample.file.stem == "3":
            shutil.copy(sample.file, name.with_name("twin.png"))
    again = with_splits(read_labelled(other), fractions, seed=3)
    assert len(again) == 44 and all(of[each.file.read_bytes()] == each.split for each in again.samples)
    assert {s.file: s.split for s in with_splits(table, fractions, seed=4).samples} != {
        s.file: s.split for s in table.samples
    }
    with pytest.raises(InputError, match="sum to 1"):
        with_splits(table, {"train": 0.5, "test": 0.4})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"file_name": "photo/dog/0.png"}, "no label under 'label'; it has file_name"),
        ({"file_name": "photo/dog/0.png", "label": ["dog"]}, "'label' must be a name or a whole number"),
        ({"file_name": "photo/dog/99.png", "label": "dog"}, "99.png is missing"),
        ({"label": "dog"}, "no 'file_name'"),
    ],
)
def test_mistakes_in_a_table_name_the_row(tree, line, message):
    (tree / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"metadata\.jsonl:1") as error:
        read_labelled(tree)
    assert message in str(error.value)


def test_mistakes_in_trees_and_lists(tree, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_labelled(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no labelled pictures"):
        read_labelled(tmp_path / "empty")
    write_lists(tree, numbers=(0, 1))
    (tree / "sketch_test_kfold.txt").write_text("sketch/dog/0.png 5\n")
    with pytest.raises(InputError, match=r"sketch_test_kfold.txt:1: class dog has number 5 here and 1 before"):
        read_labelled(tree)
    for path in tree.glob("*.txt"):
        path.unlink()
    picture(tree / "stray.png", 1)
    with pytest.raises(InputError, match="pictures 0 folders below"):
        read_labelled(tree)


# ---------------------------------------------------------------- published sets


def write_idx(path, values: np.ndarray) -> None:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture
def mnist(tmp_path):
    """Twelve thousand training digits of 4 px and twenty to test on."""
    folder, draw = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for part, count in (("train", 12_000), ("t10k", 20)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", draw.integers(1, 256, (count, 4, 4), dtype=np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", draw.integers(0, 10, count, dtype=np.uint8))
    return folder


def test_colored_mnist_is_the_recipe(mnist):
    table = colored_mnist(mnist)
    images, labels = (read_idx(mnist / f"train-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    assert [len(table.indices(split=split)) for split in ("train", "val", "test")] == [2_000, 10_000, 20]
    assert all(follows_rule(each) for each in table.where(split=["train", "val"]).samples)
    colours = np.random.default_rng(0).integers(0, 2, 20)
    assert [each.domain for each in table.where(split="test").samples] == [("red", "blue")[c] for c in colours]
    for at in range(5):
        pixels, channel = np.asarray(load(table.files[at])), 2 * (labels[at] % 2)
        np.testing.assert_array_equal(pixels[..., channel], images[at])
        assert pixels.sum() == images[at].sum() and table.samples[at].label == str(labels[at])
    half = colored_mnist(mnist, shrink=0.5).where(split="train")
    assert len({str(file) for file in half.files}) == 1_000


def test_colored_mnist_of_the_real_test_file(shared):
    table = colored_mnist(shared / "assets/data/mnist", cut=(600, 200, 200))
    assert [len(table.indices(split=split)) for split in ("train", "val", "test")] == [600, 200, 200]
    with pytest.raises(InputError, match="train-images-idx"):
        colored_mnist(shared / "assets/data/mnist")


def test_damaged_idx_files_are_named(mnist):
    path = mnist / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz: not a whole idx file"):
        colored_mnist(mnist)


def test_waterbirds(tmp_path):
    rows = [(y, place, split) for split in (0, 1, 2) for y in (0, 1) for place in (0, 1) for _ in range(4)]
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number, (y, place, split) in enumerate(rows):
        picture(tmp_path / f"b/{number}.png", number)
        lines.append(f"{number},b/{number}.png,{y},{split},{place},x")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    table = waterbirds(tmp_path)
    # of 16 validation pictures 8 fit: 4 val, 4 join the 16 test ones
    assert [len(table.indices(split=split)) for split in ("train", "val", "test")] == [16, 4, 20]
    assert {(s.label, s.domain) for s in table.where(split="val").samples} == {
        ("landbird", "forest"),
        ("waterbird", "water"),
    }
    (tmp_path / "metadata.csv").write_text("\n".join([lines[0], "0,b/0.png,7,0,0,x"]))
    with pytest.raises(InputError, match=r"metadata.csv:2: expected img_filename"):
        waterbirds(tmp_path)


def test_cub_paintings(tmp_path):
    photos, names = tmp_path / "cub", ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    files = [f"{name}/{n}.jpg" for name in names for n in range(6)]
    for number, file in enumerate(files):
        picture(photos / "images" / file, number)
        picture(tmp_path / "paintings" / file, number)
    for name, values in {
        "classes": names,
        "images": files,
        "image_class_labels": [1] * 6 + [2] * 6,
        "train_test_split": [1, 1, 0, 0, 0, 0] * 2,
    }.items():
        (photos / f"{name}.txt").write_text("".join(f"{n} {value}\n" for n, value in enumerate(values, 1)))
    table = cub_paintings(photos, tmp_path / "paintings")
    assert table.labels == ("Black footed Albatross", "Laysan Albatross")
    assert [len(table.indices(domain="photo", split=split)) for split in ("train", "val", "test")] == [4, 4, 4]
    assert [int(s.file.stem) for s in table.where(split="val").samples] == [2, 4, 2, 4]
    assert len(table.indices(domain="painting", split="test")) == 12
    with pytest.raises(InputError, match="holds no folder such as 001"):
        cub_paintings(photos, tmp_path)


def test_domainnet_mini(tree):
    for domain in DOMAINS:
        for split, kept in (("train", range(4)), ("test", range(4, 10))):
            lines = [f"{domain}/{name}/{n}.png {7 - at}" for at, name in enumerate(CLASSES) for n in kept]
            (tree / f"{domain}_{split}_mini.txt").write_text("\n".join(lines))
    table = domainnet_mini(tree, tree)
    assert {(d, s) for d, _, s in table.counts()} == {
        ("sketch", "train"),
        ("sketch", "val"),
        ("sketch", "test"),
        ("photo", "test"),
    }
    assert len(table.indices(split="val")) == len(table.indices(split="test", domain="sketch")) == 6
    with pytest.raises(InputError, match="no list of clipart"):
        domainnet_mini(tree, tree, source="clipart")


def test_digits_of_several_sources(mnist, tmp_path):
    for name in "0123456789":
        picture(tmp_path / "syn" / name / "0.png", int(name))
    table = digits({"mnist": mnist, "syndigits": tmp_path / "syn"})
    assert table.domains == ("mnist", "syndigits") and table.labels == tuple("0123456789")
    assert np.asarray(load(table.files[0])).shape == (8, 8, 3)  # two pixels of padding on each side
    picture(tmp_path / "syn" / "ten" / "0.png", 10)
    with pytest.raises(InputError, match="'ten' is no digit"):
        digits({"syndigits": tmp_path / "syn"})


def test_svhn_calls_zero_ten(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": images, "y": np.array([[1], [10], [9], [10]])})
    found, labels = read_svhn(tmp_path / "train_32x32.mat")
    assert labels.tolist() == [1, 0, 9, 0]
    np.testing.assert_array_equal(found[2], images[..., 2])
    assert len(digits({"svhn": tmp_path}).where(split="train", label="0")) == 2


def test_cifar20(tmp_path):
    draw = np.random.default_rng(0)
    fine = np.tile(np.arange(100, dtype=np.uint8), 2)
    coarse = fine % 20  # superclass c holds c, c + 20, ...
    for split in ("train", "test"):
        pixels = draw.integers(0, 256, (200, 3072), dtype=np.uint8)
        (tmp_path / f"{split}.bin").write_bytes(np.column_stack([coarse, fine, pixels]).tobytes())
    (tmp_path / "coarse_label_names.txt").write_text("\n".join(f"super_{n:02}" for n in range(20)))
    table = cifar20(tmp_path)
    assert len(table.labels) == 20 and table.domains == tuple("01234") and set(table.counts().values()) == {2}
    assert table.samples[45].label == "super 05" and table.samples[45].domain == "2"
    pixels = np.asarray(load(table.files[205]))
    record = np.frombuffer((tmp_path / "test.bin").read_bytes(), np.uint8).reshape(200, -1)[5]
    np.testing.assert_array_equal(pixels, record[2:].reshape(3, 32, 32).transpose(1, 2, 0))
    (tmp_path / "test.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="download cifar-100-binary again"):
        cifar20(tmp_path)


def test_pacs_of_the_assets(shared, tmp_path):
    with zipfile.ZipFile(shared / "assets/data/pacs128.zip") as archive:
        rows = [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]
        archive.extractall(tmp_path)
    table = read_labelled(tmp_path)
    assert len(table) == len(rows) == 5629 and len(table.labels) == 7
    assert table.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert [each.label for each in table.samples] == [row["label"] for row in rows]
