"""Judgements go by the pictures and texts that they are of, whatever files are called; bad pictures are named at the start."""

import io
import json

import pytest

pytest.importorskip("starlette", reason="the annotation app needs diffusers_ext[app]")

from annotation import candidates, judgement, lines_of
from PIL import Image

from diffusers_ext.commands import annotate
from diffusers_ext.errors import InputError
from diffusers_ext.preferences import rankings
from diffusers_ext.preferences.annotate.items import identity, read_items
from diffusers_ext.preferences.annotate.session import Session


@pytest.fixture
def folder(tmp_path):
    return candidates(tmp_path / "candidates")


def opened(folder) -> Session:
    return Session(folder, read_items(folder), seed=0)


def judge(session: Session, annotator: str, id: str, ranking: list[int], **changes) -> dict:
    position = next(at for at, place in enumerate(session.order(annotator)) if session.items[place].id == id)
    return session.save(annotator, judgement(session.item(annotator, position), ranking, **changes))


def rewrite(folder, change) -> None:
    table = folder / "candidates.jsonl"
    rows = [change(json.loads(line)) for line in table.read_text().split("\n") if line]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- what a judgement is of


def redraw(folder):
    Image.new("RGB", (32, 32), "white").save(folder / "images/0-1.png")


def other_text(folder):
    rewrite(folder, lambda row: {**row, "prompt": row["prompt"].replace("red", "purple")})


def exchange(folder):
    one, other = folder / "images/0-0.png", folder / "images/0-1.png"
    one.write_bytes(other.read_bytes()), other.write_bytes((folder / "images/0-2.png").read_bytes())


@pytest.mark.parametrize("change", [redraw, other_text, exchange])
def test_other_pictures_or_texts_under_the_same_names_are_not_judged(folder, change):
    session = opened(folder)
    for id in ("p0", "p1"):
        judge(session, "ada", id, [1, 2, 3])
    change(folder)
    again = opened(folder)
    assert again.progress("ada")["judged"] == 1
    assert [len(item.rankings) for item in again.judged()] == [0, 1, 0]
    assert again.notes() == ["ada: 1 judgements are of other pictures or texts than now; they stay, and do not count"]
    judge(again, "ada", "p0", [3, 2, 1], nonce="after the change")
    assert again.progress("ada")["judged"] == 2 and len(lines_of(folder, "ada")) == 3


def test_renamed_pictures_and_new_ids_keep_their_judgements(folder):
    judge(opened(folder), "ada", "p0", [2, 1, 3])
    (folder / "images").rename(folder / "moved")
    rewrite(folder, lambda row: {**row, "images": [name.replace("images", "moved") for name in row["images"]]})
    assert opened(folder).progress("ada")["judged"] == 1
    rewrite(folder, lambda row: {**row, "id": f"new-{row['id']}"})
    again = opened(folder)
    (item,) = [item for item in again.judged() if item.rankings]
    assert item.id == "new-p0" and item.rankings[0].ranking == (2, 1, 3) and again.notes() == []


def test_a_prompt_shown_twice_is_judged_twice(folder):
    """Repeats tell how far people agree with themselves: one judgement does not count for the other."""
    rewrite(folder, lambda row: {**row, "prompt": "a circle", "images": ["images/0-0.png", "images/0-1.png"]})
    session = opened(folder)
    judge(session, "ada", "p0", [1, 2])
    assert session.progress("ada")["judged"] == 1


def test_judgements_of_an_earlier_version_count_by_name_and_this_is_said(folder, capsys):
    session = opened(folder)
    judge(session, "ada", "p0", [1, 2, 3])
    path = folder / "annotations" / "ada.jsonl"
    (line,) = lines_of(folder, "ada")
    del line["digests"]
    path.write_text(json.dumps(line) + "\n")
    redraw(folder)
    assert opened(folder).progress("ada")["judged"] == 1
    annotate.main(annotate.Options(folder=str(folder), export=str(folder.parent / "out.jsonl")))
    assert "note: ada: 1 judgements of an earlier version name no digests" in capsys.readouterr().err


def test_pictures_that_change_while_serving_are_seen(folder):
    session = opened(folder)
    item = session.item("ada", 0)
    place = session.order("ada")[0]
    Image.new("RGB", (48, 48), "white").save(session.items[place].images[0])
    with pytest.raises(InputError, match="have changed"):
        session.save("ada", {**judgement(item, [1, 2, 3]), "digests": item["digests"]})
    newer = session.item("ada", 0)
    assert newer["digests"] != item["digests"] and newer["urls"] != item["urls"]
    assert (
        session.save("ada", {**judgement(newer, [1, 2, 3]), "digests": newer["digests"]})["digests"] == newer["digests"]
    )


# ---- what is no picture


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def as_bytes(form: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(stream, form)
    return stream.getvalue()


BAD = {
    "page.png": (b"<!doctype html><title>404</title>", "not a picture"),
    "empty.png": (b"", "an empty file"),
    "cut.png": (cut(as_bytes("PNG")), "not a readable"),
    "cut.jpg": (cut(as_bytes("JPEG")), "not a readable"),
    "cut.webp": (cut(as_bytes("WEBP")), "not a readable"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "scan.png": (as_bytes("TIFF"), "TIFF, which browsers do not show"),
    "json.jpg": (b'{"error": "not found"}', "not a picture"),
}


def test_all_that_are_no_pictures_are_named_before_anybody_starts(folder):
    for name, (data, _) in BAD.items():
        (folder / "images" / name).write_bytes(data)
    with open(folder / "candidates.jsonl", "a") as file:
        file.write(json.dumps({"id": "x", "prompt": "a", "images": [f"images/{name}" for name in BAD]}) + "\n")
    with pytest.raises(InputError) as caught:
        read_items(folder)
    told = str(caught.value).split("\n")
    assert len(told) == len(BAD)
    for line, (name, (_, fault)) in zip(told, BAD.items()):
        assert f"images/{name}: " in line and fault in line


def test_a_picture_is_shown_as_what_it_is(folder):
    """A JPEG called .png, and a picture without a suffix, are pictures."""
    (folder / "images/0-0.png").write_bytes(as_bytes("JPEG"))
    (folder / "images/0-1.png").rename(folder / "images/bare")
    rewrite(folder, lambda row: {**row, "images": [name.replace("0-1.png", "bare") for name in row["images"]]})
    assert len(read_items(folder)) == 3


# ---- prompts without ids, and many images


def test_equal_prompts_without_ids_are_judged_apart(folder):
    before = identity("a circle")
    rewrite(folder, lambda row: {"prompt": "a circle", "images": row["images"]})
    items = read_items(folder)
    assert items[0].id == before and len({item.id for item in items}) == 3
    rewrite(folder, lambda row: row)
    assert [item.id for item in read_items(folder)] == [item.id for item in items]


def test_the_folder_of_a_reranking_with_repeats_and_many_candidates(tmp_path):
    (tmp_path / "candidates").mkdir()
    names = [[f"candidates/{prompt}-{number}.png" for number in range(30)] for prompt in range(2)]
    for name in (name for row in names for name in row):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    drawn = [
        {"prompt": "a red circle", "candidates": [{"number": at, "image": name} for at, name in enumerate(row)]}
        for row in names
    ]
    (tmp_path / "scores.json").write_text(json.dumps({"prompts": drawn}))
    items = read_items(tmp_path)
    assert [len(item.images) for item in items] == [30, 30] and items[0].id != items[1].id
    assert items[0].id == identity("a red circle")
    session = Session(tmp_path, items, seed=0)
    assert session.save("ada", judgement(session.item("ada", 0), list(range(1, 31))))["revision"] == 1


# ---- the export


@pytest.mark.parametrize("name", ["candidates.jsonl", "annotations/ada.jsonl", "annotations/all.jsonl", "link.jsonl"])
def test_an_export_replaces_neither_table_nor_judgements(folder, name):
    judge(opened(folder), "ada", "p0", [1, 2, 3])
    (folder / "link.jsonl").symlink_to(folder / "candidates.jsonl")
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    with pytest.raises(InputError, match="--export"):
        annotate.main(annotate.Options(folder=str(folder), export=str(folder / name)))
    assert {path: path.read_bytes() for path in folder.rglob("*.jsonl")} == before


def test_an_export_that_would_become_the_table_is_refused(folder):
    (folder / "candidates.jsonl").rename(folder / "prompts.jsonl")
    judge(opened(folder), "ada", "p0", [1, 2, 3])
    with pytest.raises(InputError, match="taken for the table"):
        annotate.main(annotate.Options(folder=str(folder), export=str(folder / "rankings.jsonl")))
    annotate.main(annotate.Options(folder=str(folder), export=str(folder / "judged.jsonl")))
    assert len(rankings.read(folder / "judged.jsonl")) == 1
