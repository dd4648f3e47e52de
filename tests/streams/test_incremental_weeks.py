"""`diffusers-ext learn` and `classify`: the weekly job on a run folder, and what survives bad pictures and kills."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_ext import VMFMixtureClassifier, cli
from diffusers_ext.errors import InputError
from diffusers_ext.streams import weeks as incremental_weeks
from diffusers_ext.streams.weeks import Weeks

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


def draw_week(folder, seed: int, names=("red", "green"), per_class: int = 10):
    """A tree of classes of noisy colours; other seeds are other pictures."""
    draw = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.clip(np.array(COLOURS[name]) + draw.integers(-30, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet", pretrained=False).state_dict(), path)
    return f"timm:test_efficientnet@{path},size=32,crop_pct=1"


@pytest.fixture(scope="module")
def weeks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weeks")
    return draw_week(folder / "week1", 1), draw_week(folder / "week2", 2, tuple(COLOURS))


@pytest.fixture(scope="module")
def started(weeks, backbone, tmp_path_factory):
    """A run that a single week started."""
    run = tmp_path_factory.mktemp("run") / "stream"
    cli.main(["learn", str(run), "--data", str(weeks[0]), "--backbone", backbone, "--device", "cpu"])
    return run


@pytest.fixture
def run(started, tmp_path):
    return shutil.copytree(started, tmp_path / "run")


def learn(run, data, *more) -> None:
    cli.main(["learn", str(run), "--data", str(data), "--device", "cpu", *map(str, more)])


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def state_of(run) -> dict[str, bytes]:
    names = ("config.json", "diffusion_pytorch_model.safetensors", "README.md", "pictures.jsonl", "weeks.jsonl")
    return {name: (run / name).read_bytes() for name in names if (run / name).exists()}


def failure(capsys, *words) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_one_week_alone_starts_a_run(started):
    classifier = VMFMixtureClassifier.from_pretrained(started)
    assert set(classifier.classes_) == {"red", "green"} and classifier.config.encoder_digest
    pictures = rows(started / "pictures.jsonl")
    assert len(pictures) == 20 and sum(row["held_out"] for row in pictures) == 4
    card = (started / "README.md").read_text()
    assert "held-out pictures" in card and "| 1 | 16 | 2 |" in card


def test_a_week_is_learnt_measured_and_taken_back(run, weeks, capsys):
    before = state_of(run)
    learn(run, weeks[1], "--domain", "shop")
    printed = capsys.readouterr().out
    assert "week 2: 24 pictures learnt, 6 held out" in printed and "classes 3" in printed
    assert "shop" in printed and "all " in printed
    row = rows(run / "weeks.jsonl")[-1]
    assert row["after"]["all"]["pictures"] == 10 and row["before"]["all"]["pictures"] == 10
    assert set(VMFMixtureClassifier.from_pretrained(run).classes_) == set(COLOURS)
    cli.main(["learn", str(run), "--rollback"])
    assert state_of(run) == before
    assert "no earlier state" in failure(capsys, "learn", run, "--rollback")
    learn(run, weeks[1])
    assert set(VMFMixtureClassifier.from_pretrained(run).classes_) == set(COLOURS)


def test_the_same_pictures_are_learnt_once(run, weeks, tmp_path, capsys):
    before = state_of(run)
    learn(run, weeks[0])
    assert "nothing is new" in capsys.readouterr().out and state_of(run) == before
    mixed = shutil.copytree(weeks[0], tmp_path / "mixed")
    (mixed / "red" / "0.png").rename(mixed / "green" / "other.png")  # under another name and class
    draw_week(mixed / "more", 7, ("red",), 4)
    for file in (mixed / "more" / "red").iterdir():
        file.rename(mixed / "red" / f"new{file.name}")
    shutil.rmtree(mixed / "more")
    learn(run, mixed)
    printed = capsys.readouterr().out
    assert "other.png: the same picture was 'red' before" in printed and "20 of 24 pictures are known" in printed
    row = rows(run / "weeks.jsonl")[-1]
    assert row["learnt"] + row["held_out"] == 4


def test_held_out_pictures_stay_held_out(run, weeks):
    held = {row["key"] for row in rows(run / "pictures.jsonl") if row["held_out"]}
    learn(run, weeks[0], "--test_fraction", 0.5, "--seed", 3)
    learn(run, weeks[1])
    assert held == {row["key"] for row in rows(run / "pictures.jsonl") if row["held_out"] and row["week"] == 1}


@pytest.mark.parametrize("moment", ["_save", "_put", "_copy"])
def test_a_kill_leaves_the_state_before_or_after(run, weeks, moment, monkeypatch):
    before, keep = state_of(run), getattr(Weeks, moment)

    def killed(self, *arguments):
        if moment == "_copy":  # half of the files arrive
            shutil.copy(self.states / "2" / "config.json", self.folder / "config.json")
        raise KeyboardInterrupt

    monkeypatch.setattr(Weeks, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        learn(run, weeks[1])
    monkeypatch.setattr(Weeks, moment, keep)
    Weeks(run)
    if moment == "_copy":
        assert len(rows(run / "weeks.jsonl")) == 2
    else:
        assert state_of(run) == before
        learn(run, weeks[1])
    assert set(VMFMixtureClassifier.from_pretrained(run).classes_) == set(COLOURS)


def test_bad_pictures_refuse_the_week_or_are_left_out(run, weeks, tmp_path, capsys):
    before, week = state_of(run), shutil.copytree(weeks[1], tmp_path / "bad")
    (week / "red" / "0.png").write_bytes(b"<html>")
    (week / "blue" / "1.png").write_bytes((week / "blue" / "2.png").read_bytes()[:200])
    error = failure(capsys, "learn", run, "--data", week)
    assert "pictures cannot be read" in error and "0.png" in error and "1.png" in error and state_of(run) == before
    learn(run, week, "--on_bad_sample", "skip")
    assert rows(run / "weeks.jsonl")[-1]["learnt"] + rows(run / "weeks.jsonl")[-1]["held_out"] == 28
    assert capsys.readouterr().out.count("left out:") == 2


def test_what_cannot_be_learnt_is_named(run, weeks, backbone, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "lads").mkdir()
    (tmp_path / "lads" / "config.json").write_text('{"_class_name": "LADSClassifier"}')
    for words, message in (
        ((run,), "either --data FOLDER or --rollback"),
        ((run, "--data", weeks[0], "--rollback"), "either --data FOLDER or --rollback"),
        ((run, "--data", tmp_path / "gone"), "gone: no such folder"),
        ((run, "--data", weeks[0], "--head", "lda"), "has its head already"),
        ((run, "--data", weeks[0], "--test_fraction", "1"), "--test_fraction"),
        ((tmp_path / "new", "--data", weeks[0]), "give --backbone"),
        ((tmp_path / "new", "--rollback"), "no such run folder"),
        ((tmp_path / "other", "--data", weeks[0], "--backbone", backbone), "is not empty"),
        ((tmp_path / "lads", "--data", weeks[0]), "cannot learn on"),
        ((tmp_path / "new", "--data", weeks[0], "--backbone", "runs/gone"), "not found; pass backbone="),
    ):
        assert message in failure(capsys, "learn", *words)
    assert not (tmp_path / "new" / "config.json").exists()


def test_a_moved_backbone_is_named_and_may_be_given(run, weeks, backbone, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    shutil.rmtree(run / "weeks")  # as a folder that was saved elsewhere
    (run / "config.json").write_text(
        json.dumps({**config, "encoder": "timm:test_efficientnet@gone.safetensors,size=32"})
    )
    assert "pass backbone=" in failure(capsys, "learn", run, "--data", weeks[1])
    learn(run, weeks[1], "--backbone", backbone)
    other = backbone.replace("test_efficientnet@", "test_convnext@")
    assert "do not fit the model" in failure(capsys, "classify", weeks[1], "--model", run, "--backbone", other)


# classify


def classified(run, data, output, *more) -> list[dict]:
    cli.main(["classify", str(data), "--model", str(run), "--output", str(output), "--device", "cpu", *map(str, more)])
    return rows(output)


def test_a_run_that_keeps_learning_classifies(run, weeks, tmp_path, capsys):
    found = classified(run, weeks[1], tmp_path / "out.jsonl")
    assert len(found) == 30 and all({"label", "probability", "component", "top", "key"} <= set(row) for row in found)
    printed = capsys.readouterr().out
    assert "week2" in printed and "10 pictures are of classes that this classifier has not learnt" in printed
    classifier = VMFMixtureClassifier.from_pretrained(run)
    embedded = classifier.backbone.embed_images([row["image"] for row in found])
    assert [row["label"] for row in found] == classifier.predict(embedded).tolist()


def test_one_bad_picture_costs_its_own_row(run, weeks, tmp_path, capsys):
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, file in enumerate(sorted((weeks[0] / "red").iterdir())):
        shutil.copy(file, folder / f"{number}.png")
    Image.open(folder / "1.png").save(folder / "1.gif")
    (folder / "deeper").mkdir()
    shutil.copy(folder / "2.png", folder / "deeper" / "2.PNG")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    (folder / "0.png").write_bytes(b"<html>")
    (folder / "9.png").write_bytes(b"")
    output = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as ended:
        classified(run, folder, output, "--batch_size", 4)
    found, said = rows(output), capsys.readouterr()
    assert ended.value.code == 2 and "2 of 12 pictures could not be read" in said.err
    assert len(found) == 12 and sum("error" in row for row in found) == 2
    assert "files left out, which are no pictures (1): notes.txt" in said.out
    assert {"1.gif", "2.PNG"} <= {row["image"].rsplit("/", 1)[1] for row in found if "label" in row}

    shutil.copy(folder / "3.png", folder / "0.png")  # fixed
    (folder / "9.png").unlink()
    output.write_text("".join(json.dumps(row) + "\n" for row in found if not row["image"].endswith("9.png")) + '{"cut')
    assert len(classified(run, folder, output)) == 11


def test_a_killed_classification_resumes_by_content(run, weeks, tmp_path, monkeypatch):
    folder, output = shutil.copytree(weeks[0] / "red", tmp_path / "flat"), tmp_path / "out.jsonl"
    from diffusers_ext.embeddings.backbones import Backbone

    embed, calls = Backbone._embed, []

    def killed(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, images)

    monkeypatch.setattr(Backbone, "_embed", killed)
    with pytest.raises(KeyboardInterrupt):
        classified(run, folder, output, "--batch_size", 4)
    assert len(rows(output)) == 8
    whole = rows(output)
    Image.new("RGB", (8, 8), "blue").save(folder / "0.png")  # under the same name
    calls.append(0)
    found = classified(run, folder, output, "--batch_size", 4)
    assert len(found) == 10 and calls[4:] == [3]
    assert found[1:8] == whole[1:8] and found[0]["key"] != whole[0]["key"]


def test_outputs_of_others_are_kept(run, weeks, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    classified(run, weeks[0] / "red", output)
    before = output.read_bytes()
    message = failure(capsys, "classify", weeks[0] / "red", "--model", run, "--output", output, "--top", "1")
    assert "of another classifier, or other settings" in message
    assert output.read_bytes() == before
    found = classified(run, weeks[1] / "red", output)
    assert found[:10] == [json.loads(line) for line in before.splitlines()] and len(found) == 20
    assert "also keeps 10 rows of pictures" in capsys.readouterr().out
    output.write_text("my notes\nof today\n")
    assert "no row of classify" in failure(capsys, "classify", weeks[0], "--model", run, "--output", output)
    assert output.read_text() == "my notes\nof today\n"


def test_a_renamed_picture_keeps_its_row(run, weeks, tmp_path, monkeypatch):
    from diffusers_ext.embeddings.backbones import Backbone

    folder, output = shutil.copytree(weeks[0] / "green", tmp_path / "flat"), tmp_path / "out.jsonl"
    before = classified(run, folder, output)
    (folder / "0.png").rename(folder / "z.png")
    monkeypatch.setattr(Backbone, "_embed", None)  # nothing is left to embed
    after = classified(run, folder, output)
    assert [row["label"] for row in after] == [row["label"] for row in before[1:] + before[:1]]
    assert after[-1]["image"].endswith("z.png") and len(after) == 10


def test_what_cannot_classify_is_named(run, weeks, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    for words, message in (
        ((weeks[0], "--model", tmp_path / "empty"), "holds no config.json"),
        ((weeks[0], "--model", tmp_path / "other"), "a UNet2DModel"),
        ((weeks[0], "--model", tmp_path / "gone"), "no folder or Hub name"),
        ((weeks[0], "--model", run, "--head", "ensemble"), "--head and --share are of LADSClassifier"),
        ((tmp_path / "empty", "--model", run), "holds no pictures"),
        ((tmp_path / "texts", "--model", run), "a.txt"),
        ((tmp_path / "gone", "--model", run), "no such picture or folder"),
    ):
        assert message in failure(capsys, "classify", *words)


def test_labels_keep_their_type(tmp_path):
    learner = VMFMixtureClassifier(4).partial_fit(np.eye(4)[:2] + 0.1, [0, 1])
    assert incremental_weeks._as_known(["1", "2"], learner) == [1, 2]
    with pytest.raises(InputError, match="of type int"):
        incremental_weeks._as_known(["dog"], learner)


@pytest.mark.parametrize("text", ["not json\n", '{"key": "a"}\n', "[]\n"])
@pytest.mark.parametrize("name", ["pictures.jsonl", "weeks.jsonl"])
def test_damaged_records_are_named_with_their_line(run, weeks, capsys, name, text):
    shutil.rmtree(run / "weeks")
    (run / name).write_text(text)
    assert f"{name}:1" in failure(capsys, "learn", run, "--data", weeks[1], "--device", "cpu")


@pytest.mark.parametrize("content", ["[]", '{"_class_name": "LADSClassifier"}', '{"_class_name": "UNet2DModel"}'])
def test_what_is_no_classifier_is_refused_by_both_commands(run, weeks, capsys, tmp_path, content):
    shutil.rmtree(run / "weeks")
    (run / "config.json").write_text(content)
    assert "error: " in failure(capsys, "learn", run, "--data", weeks[1], "--device", "cpu")
    output = tmp_path / "rows.jsonl"
    assert str(run) in failure(capsys, "classify", weeks[0], "--model", run, "--output", output)


@pytest.mark.parametrize("damage", ["cut", "gone", "renamed", "lacking"])
def test_weights_of_a_run_are_loaded_whole_or_not_at_all(run, weeks, capsys, tmp_path, damage):
    shutil.rmtree(run / "weeks")
    path = run / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "gone":
        path.unlink()
    elif damage == "renamed":
        save_file({f"model.{name}": value for name, value in tensors.items()}, path)
    else:
        save_file({name: value for name, value in tensors.items() if not name.endswith("plain.sums")}, path)
    output = tmp_path / "rows.jsonl"
    for words in (["learn", run, "--data", weeks[1]], ["classify", weeks[0], "--model", run, "--output", output]):
        assert str(run) in failure(capsys, *words, "--device", "cpu")
    assert not output.exists()


@pytest.mark.parametrize("settings", ["", ",size=32", ",size=64,crop_pct=1"])
def test_a_backbone_with_other_settings_is_refused(run, weeks, backbone, capsys, tmp_path, settings):
    other = backbone.split(",")[0] + settings
    told = failure(capsys, "learn", run, "--data", weeks[1], "--device", "cpu", "--backbone", other)
    assert "prepares pictures with" in told and backbone in told
    output = tmp_path / "rows.jsonl"
    told = failure(capsys, "classify", weeks[0], "--model", run, "--output", output, "--backbone", other)
    assert "prepares pictures with" in told


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_said_to_be(run, weeks, capsys, tmp_path, device):
    assert f"--device {device}" in failure(capsys, "learn", run, "--data", weeks[1], "--device", device)
    words = ["classify", weeks[0], "--model", run, "--output", tmp_path / "rows.jsonl", "--device", device]
    assert f"--device {device}" in failure(capsys, *words)


def test_splits_and_domains_of_no_use_are_refused(run, weeks, capsys, tmp_path):
    rows_ = [f"{path},{path.parent.name},holdback" for path in sorted(weeks[1].glob("*/*.png"))]
    table = tmp_path / "week.csv"
    table.write_text("\n".join(["file_name,label,split", *rows_]) + "\n")
    assert "split 'holdback'" in failure(capsys, "learn", run, "--data", table, "--device", "cpu")
    told = failure(capsys, "learn", run, "--data", weeks[1], "--domain", "all", "--device", "cpu")
    assert "domain 'all'" in told


def test_a_rollback_is_offered_where_there_is_one_and_takes_no_other_option(weeks, backbone, run, capsys, tmp_path):
    learn(tmp_path / "new", weeks[0], "--backbone", backbone)
    assert "--rollback" not in capsys.readouterr().out
    learn(run, weeks[1])
    assert "--rollback" in capsys.readouterr().out
    assert "--domain" in failure(capsys, "learn", run, "--rollback", "--domain", "x")
    assert "--backbone" in failure(capsys, "learn", run, "--rollback", "--backbone", backbone)
    assert "--seed" in failure(capsys, "learn", run, "--rollback", "--seed", "3")


def test_a_week_after_a_damaged_state_has_its_own_number(run, weeks):
    (run / "weeks" / "1" / "config.json").write_text("x")
    learn(run, weeks[1])
    assert [row["week"] for row in rows(run / "weeks.jsonl")] == [1, 2]


def test_a_strip_costs_its_own_row_and_is_named_before_learning(run, weeks, capsys, tmp_path):
    data = shutil.copytree(weeks[1], tmp_path / "week")
    Image.new("RGB", (5000, 1)).save(data / "red" / "strip.png")
    output = tmp_path / "rows.jsonl"
    assert "strip.png" in failure(capsys, "classify", data, "--model", run, "--output", output)
    errors = [row["image"] for row in rows(output) if "error" in row]
    assert errors == [str(data / "red" / "strip.png")] and len(rows(output)) == 31
    assert "strip.png: 5000x1" in failure(capsys, "learn", run, "--data", data, "--device", "cpu")


@pytest.mark.parametrize("name", ["t.tsv", "t.json", "T.CSV", "t.parquet"])
def test_tables_of_every_form_are_classified(run, weeks, capsys, tmp_path, name):
    pandas = pytest.importorskip("pandas")
    files = sorted(weeks[0].glob("*/*.png"))[:3]
    table = pandas.DataFrame(
        {"file_name": [str(file) for file in files], "label": [file.parent.name for file in files]}
    )
    path, output = tmp_path / name, tmp_path / "rows.jsonl"
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".json":
        table.to_json(path, orient="records")
    else:
        table.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    cli.main(["classify", str(path), "--model", str(run), "--output", str(output)])
    assert "of 3 right" in capsys.readouterr().out and len(rows(output)) == 3


@pytest.mark.parametrize(
    "name, content",
    [("metadata.csv", "file_name,label\n0.png,red\n"), ("METADATA.CSV", "file_name,label\n0.png,red\n")],
)
def test_a_table_of_some_pictures_leaves_none_out(run, weeks, capsys, tmp_path, name, content):
    data = shutil.copytree(weeks[0] / "red", tmp_path / "data")
    (data / name).write_text(content)
    output = tmp_path / "rows.jsonl"
    cli.main(["classify", str(data), "--model", str(run), "--output", str(output)])
    assert len(rows(output)) == 10 and "of 1 right" in capsys.readouterr().out


def test_a_table_of_captions_is_no_hindrance(run, weeks, capsys, tmp_path):
    data = shutil.copytree(weeks[0] / "red", tmp_path / "data")
    (data / "metadata.csv").write_text("file_name,text\n0.png,a red thing\n")
    output = tmp_path / "rows.jsonl"
    cli.main(["classify", str(data), "--model", str(run), "--output", str(output)])
    assert len(rows(output)) == 10 and "read without labels" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'{"image": "a", "key": ["k"], "model": "m"}\n', b"null\nnull\n"])
def test_an_output_that_is_no_rows_is_refused_and_kept(run, weeks, capsys, tmp_path, content):
    output = tmp_path / "rows.jsonl"
    output.write_bytes(content)
    assert "no row of classify" in failure(capsys, "classify", weeks[0], "--model", run, "--output", output)
    assert output.read_bytes() == content
