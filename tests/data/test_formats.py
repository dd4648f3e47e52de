"""The same 200 pairs in every form give the same rows and samples; what is wrong with a source is said by name."""

import csv
import io
import itertools
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cache import train

from diffusers_ext.conditions.catalogue import resolve
from diffusers_ext.data import cells
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.preflight import check
from diffusers_ext.data.rows import read_image_folder, read_rows
from diffusers_ext.data.shards import INDEX
from diffusers_ext.diffusion.base import base_of
from diffusers_ext.errors import InputError
from diffusers_ext.randomness import MicroBatches, Share
from diffusers_ext.toy import circles as fill50k

COUNT = 200


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return fill50k.write(tmp_path_factory.mktemp("formats") / "pairs", count=COUNT, size=32)


@pytest.fixture(scope="session")
def records(folder) -> list[dict]:
    """What the forms are written from: {"image", "conditioning_image", "text"}, paths relative to the folder."""
    lines = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    names = {"image": "file_name", "conditioning_image": "conditioning_image_file_name", "text": "text"}
    return [{ours: line[theirs] for ours, theirs in names.items()} for line in lines]


@pytest.fixture(scope="session")
def digest(folder) -> str:
    return check(read_image_folder(str(folder))).digest


def link(folder: Path, source: Path) -> Path:
    """A folder with the same pictures and no metadata."""
    folder.mkdir()
    for name in ("images", "conditions"):
        (folder / name).symlink_to(source / name)
    return folder


def write_csv(path: Path, records: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    return path


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def sample_files(folder: Path, record: dict, key: str, caption: str = "txt") -> dict[str, bytes]:
    text = record["text"] if caption == "txt" else json.dumps({"text": record["text"]})
    return {
        f"{key}.png": (folder / record["image"]).read_bytes(),
        f"{key}.cond.png": (folder / record["conditioning_image"]).read_bytes(),
        f"{key}.{caption}": text.encode(),
    }


def image_folder(source, records, place):
    return source


def metadata_csv(source, records, place):
    write_csv(link(place / "set", source) / "metadata.csv", records)
    return place / "set"


def jsonl(source, records, place):
    return write_jsonl(link(place / "set", source) / "pairs.jsonl", records)


def csv_table(source, records, place):
    return write_csv(link(place / "set", source) / "pairs.csv", records)


def parquet(source, records, place):
    datasets = pytest.importorskip("datasets", reason="datasets is an extra: pip install diffusers_ext[data]")
    path = link(place / "set", source) / "pairs.parquet"
    datasets.Dataset.from_list(records).to_parquet(str(path))
    return path


def parquet_of_pictures(source, records, place):
    data = hub_like(source, records)
    data.to_parquet(str(place / "pairs.parquet"))
    return place / "pairs.parquet"


def saved_dataset(source, records, place):
    hub_like(source, records).save_to_disk(str(place / "saved"))
    return place / "saved"


def hub_like(source, records):
    """A data set with pictures in its cells, as on the Hub."""
    datasets = pytest.importorskip("datasets", reason="datasets is an extra: pip install diffusers_ext[data]")
    picture = datasets.Image()
    features = datasets.Features(image=picture, conditioning_image=picture, text=datasets.Value("string"))
    paths = [
        {name: str(source / value) if name != "text" else value for name, value in record.items()} for record in records
    ]
    return datasets.Dataset.from_list(paths, features=features)


def fill50k_folder(source, records, place):
    names = {"target": "image", "source": "conditioning_image", "prompt": "text"}
    lines = [{theirs: record[ours] for theirs, ours in names.items()} for record in records]
    write_jsonl(link(place / "set", source) / "prompt.json", lines)
    return place / "set"


def two_folders(source, records, place):
    (place / "set/images").mkdir(parents=True)
    (place / "set/conditions").symlink_to(source / "conditions")
    for record in records:
        path = place / "set" / record["image"]
        path.symlink_to(source / record["image"])
        path.with_suffix(".txt").write_text(record["text"] + "\n")
    return place / "set"


def tar_shards(source, records, place):
    for shard in range(3):
        chosen = list(enumerate(records))[shard * 70 : (shard + 1) * 70]
        files = [sample_files(source, record, f"{i:06d}", ("txt", "json")[shard % 2]) for i, record in chosen]
        write_tar(place / f"pairs-{shard}.tar", {name: data for each in files for name, data in each.items()})
    return place


FORMS = [
    image_folder,
    metadata_csv,
    jsonl,
    csv_table,
    parquet,
    parquet_of_pictures,
    saved_dataset,
    fill50k_folder,
    two_folders,
    tar_shards,
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is an extra: pip install diffusers_ext[data]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("write", FORMS)
def test_every_form_gives_the_same_samples(write, folder, records, digest, tmp_path):
    place = tmp_path / "form"
    place.mkdir()
    rows = read_rows(str(write(folder, records, place)))
    ours, expected = (Pairs(each, 32, seed=0, flip=0.5) for each in (rows, read_image_folder(str(folder))))
    assert len(ours) == COUNT and ours.captions() == expected.captions()
    assert check(rows).faults == [] and check(rows).digest == digest
    for key in itertools.chain.from_iterable(MicroBatches(COUNT, 0, Share(2, stop=20))):
        sample = ours[key]
        for name, value in expected[key].items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(sample[name], value), (key, name)
    assert [row.texts for row in read_rows(rows_source(write, folder, place), limit=7)] == [r.texts for r in rows[:7]]


def test_the_first_20_losses_are_those_of_the_image_folder(folder, records, pipe, tmp_path):
    """From an archive, the form that differs most; equal samples in the other forms are the test above."""
    encoders = base_of(pipe).encoders
    sources = [read_image_folder(str(folder)), read_rows(str(tar_shards(folder, records, tmp_path)))]
    first, second = (train(pipe, encoders, Pairs(rows, 32, 0, 0.5), steps=20, batch=1) for rows in sources)
    assert first == second and len(set(first)) == 20


def rows_source(write, folder: Path, place: Path) -> str:
    """The path that a form was written to, to read it a second time."""
    if write is image_folder:
        return str(folder)
    tables = [*place.glob("set/pairs.*"), *place.glob("*.parquet")]
    return str(next((each for each in (*tables, place / "set", place / "saved") if each.exists()), place))


def test_hub_name_is_read_through_datasets(folder, records, monkeypatch, tmp_path):
    import datasets

    asked = []

    def load_dataset(*names, **settings):
        asked.append((names, settings))
        return hub_like(folder, records)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows("someone/pairs", config="small", cache_dir="here", limit=3)
    assert asked == [(("someone/pairs", "small"), {"split": "train", "cache_dir": "here"})]
    assert len(rows) == 3 and str(rows[1].condition) == "someone/pairs[1]['conditioning_image']"
    with pytest.raises(InputError, match=r"no column 'depth'; it has image, conditioning_image, text; see --cond"):
        read_rows("someone/pairs", conditioning_image_column="depth")


def test_hub_name_that_does_not_exist_and_package_that_is_missing(monkeypatch):
    with pytest.raises(InputError, match=r"someone/absent: .*the Hub does not give this data set"):
        read_rows("someone/absent")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install diffusers_ext\[data\]"):
        cells.read_hub("someone/absent", None, None, ("image", "text", None), None)


def test_captions_may_be_lists(folder, records, tmp_path):
    several = [{**record, "text": [record["text"], "a circle"]} for record in records]
    rows = read_rows(str(write_jsonl(link(tmp_path / "set", folder) / "pairs.jsonl", several)))
    assert rows[0].texts == (records[0]["text"], "a circle") and rows[0].text == records[0]["text"]
    pairs = Pairs(rows, 32, seed=0)
    assert "a circle" in pairs.captions()
    drawn = [{pairs.caption((epoch, index)) for epoch in range(20)} for index in range(COUNT)]
    assert all(seen == set(row.texts) for seen, row in zip(drawn, rows))  # anew each epoch, and none is left out
    share = sum(pairs.caption((0, index)) == "a circle" for index in range(COUNT)) / COUNT
    assert 0.4 < share < 0.6


def test_captions_of_a_text_file_are_its_lines(folder, records, tmp_path):
    place = two_folders(folder, records[:2], tmp_path)
    (place / "images/000000.txt").write_text("one circle\n\n a disc \n")
    (place / "images/000001.txt").unlink()
    assert [row.texts for row in read_rows(str(place))] == [("one circle", "a disc"), ("",)]


def test_folders_are_chosen_by_column(folder, tmp_path):
    link(tmp_path / "set", folder)
    assert len(read_rows(str(tmp_path / "set"), "images", "text", "conditions")) == COUNT
    with pytest.raises(InputError, match="has no folder 'depth' to pair by name"):
        read_rows(str(tmp_path / "set"), conditioning_image_column="depth")


def test_unpaired_pictures_of_two_folders_are_orphans(folder, records, tmp_path):
    place = two_folders(folder, records[:5], tmp_path)  # conditions has all 200
    (place / "images/lonely.png").symlink_to(folder / records[0]["image"])
    rows = read_rows(str(place))
    assert len(rows) == 5 and len(rows.orphans) == COUNT - 5 + 1
    assert place / "images/lonely.png" in rows.orphans
    Image.new("RGB", (8, 8)).save(place / "images/000000.jpg")
    with pytest.raises(InputError, match=r"000000\.png: .*000000\.jpg has the same name but for its suffix"):
        read_rows(str(place))


def test_a_tar_is_listed_once_and_again_when_it_changed(folder, records, tmp_path):
    path = write_tar(tmp_path / "a.tar", sample_files(folder, records[0], "x"))
    first = read_rows(str(path))
    index = tmp_path / ("a.tar" + INDEX)
    assert str(first[0].condition) == f"{path}/x.cond.png" and index.is_file()
    index.write_text(index.read_text().replace("x.cond.png", "x.cond.jpg"))
    assert read_rows(str(path))[0].condition.name == "x.cond.jpg"  # the index is what is read
    write_tar(path, {**sample_files(folder, records[0], "x"), **sample_files(folder, records[1], "y")})
    assert [row.condition.name for row in read_rows(str(path))] == ["x.cond.png", "y.cond.png"]
    index.write_text("nonsense")
    assert len(read_rows(str(path))) == 2


def test_faults_of_tar_archives(folder, records, tmp_path):
    files = sample_files(folder, records[0], "x")
    rows = read_rows(str(write_tar(tmp_path / "a.tar", {**files, "y.png": files["x.png"], "z.cond.png": b"."})))
    assert [file.name for file in rows.orphans] == ["y.png", "z.cond.png"] and len(rows) == 1
    assert read_rows(str(tmp_path / "a.tar"), conditioning_image_column=None)[1].texts == ("",)
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    with pytest.raises(InputError, match=r"cut\.tar: .*cut short"):
        read_rows(str(cut))
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as archive:
        archive.add(tmp_path / "a.tar")
    with pytest.raises(InputError, match=r"zipped\.tar: not an uncompressed tar archive"):
        read_rows(str(tmp_path / "zipped.tar"))
    write_tar(tmp_path / "json.tar", {**{n: d for n, d in files.items() if n != "x.txt"}, "x.json": b'{"label": 3}'})
    with pytest.raises(InputError, match=r"x\.json: no caption under 'text'; it has label"):
        read_rows(str(tmp_path / "json.tar"))


def test_a_table_may_name_files_anywhere_an_image_folder_may_not(folder, records, tmp_path):
    absolute = [{**records[0], "image": str(folder / records[0]["image"]), "conditioning_image": "../out.png"}]
    assert read_rows(str(write_jsonl(tmp_path / "pairs.jsonl", absolute)))[0].image == folder / records[0]["image"]
    write_jsonl(tmp_path / "metadata.jsonl", absolute)
    with pytest.raises(InputError, match=r"metadata\.jsonl:1: .* lies outside"):
        read_rows(str(tmp_path))


def test_orphans_are_pictures_that_no_column_names(folder, records, tmp_path):
    place = metadata_csv(folder, records[:-1], tmp_path)
    (orphan_image, orphan_condition) = read_rows(str(place)).orphans
    assert {orphan_image.name, orphan_condition.name} == {"000199.png"}
    assert len(read_rows(str(place), conditioning_image_column=None).orphans) == 2  # conditions are named all the same
    assert read_rows(str(place), limit=5).orphans == []  # nothing can be said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"image": "x.png", "text": "x"}\n',
            r"a\.jsonl:1: no 'conditioning_image_file_name'; it has image",
        ),
        ("a.csv", "image,conditioning_image\nx.png,y.png\n", r"a\.csv:2: no caption under 'text'"),
        ("a.csv", "image,text\n\n", r"a\.csv: holds no rows"),
        ("a.json", "[1]\n", r"a\.json:1: expected a JSON object"),
        ("a.txt", "x", r"a\.txt: give one \.jsonl or \.csv, or \.parquet or \.tar files"),
        ("a.csv", b"\xe9", r"a\.csv:1: not UTF-8"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_rows(str(tmp_path / name))


def test_a_source_that_is_nothing(tmp_path):
    with pytest.raises(InputError, match="no such folder or file, nor owner/name"):
        read_rows(str(tmp_path / "absent"))


def test_unusual_line_ends_stay_inside_captions(folder, records, tmp_path):
    odd = [{**records[0], "text": "a circle\u2028of two\x0blines"}]
    path = link(tmp_path / "set", folder) / "pairs.jsonl"
    path.write_text(json.dumps(odd[0], ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(str(path))[0].text == odd[0]["text"]


def test_masks_mark_conditions_in_every_form(tmp_path):
    """White pixels of a mask are -1 in the condition, cut like the picture; the forms agree."""
    source = tmp_path / "source"
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    records = []
    for index in range(3):
        Image.fromarray(fill50k.draw_target(fill50k.scene(index), 48)).save(source / f"images/{index}.png")
        mask = Image.new("L", (48, 48), 0)
        mask.paste(255, (8 * index, 12, 8 * index + 16, 36))
        mask.save(source / f"masks/{index}.png")
        (source / f"images/{index}.txt").write_text(f"circle {index}")
        records.append({"image": f"images/{index}.png", "mask": f"masks/{index}.png", "text": f"circle {index}"})
    write_jsonl(source / "pairs.jsonl", records)
    write_csv(source / "pairs.csv", records)
    with tarfile.open(tmp_path / "pairs.tar", "w") as archive:
        for index in range(3):
            archive.add(source / f"images/{index}.png", f"{index}.png")
            archive.add(source / f"masks/{index}.png", f"{index}.mask.png")
            archive.add(source / f"images/{index}.txt", f"{index}.txt")
    digests = set()
    for form in (source, source / "pairs.jsonl", source / "pairs.csv", tmp_path / "pairs.tar"):
        report = check(read_rows(str(form), conditioning_image_column=None, mask_column="mask"))
        digests.add(report.digest)
        sample = Pairs(report.rows, 48, seed=0, condition=resolve("identity"), flip=1.0)[0, 1]
        condition, picture = sample["conditioning_pixel_values"], sample["pixel_values"]
        marked = torch.zeros(48, 48, dtype=torch.bool)
        marked[12:36, 8:24] = True
        marked = marked.flip(1)
        assert (condition[:, marked] == -1).all()
        assert torch.equal(condition[:, ~marked], ((picture + 1) / 2)[:, ~marked])
    assert len(digests) == 1


def test_a_mask_that_is_missing_or_of_another_shape_is_named(tmp_path):
    for name in ("picture", "condition", "mask"):
        Image.effect_noise((32, 48 if name == "mask" else 32), 60).save(tmp_path / f"{name}.png")
    record = {"image": "picture.png", "conditioning_image": "condition.png", "text": "a"}
    table = write_jsonl(tmp_path / "pairs.jsonl", [record])
    with pytest.raises(InputError, match=r"pairs.jsonl:1: no 'mask_file_name'; .* see --mask_column"):
        read_rows(str(table), mask_column="mask")
    write_jsonl(table, [{**record, "mask": "mask.png"}])
    with pytest.raises(InputError, match=r"mask.png: 32x48 does not have the shape of its image, 32x32"):
        check(read_rows(str(table), mask_column="mask"))
