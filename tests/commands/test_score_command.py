"""`diffusers-ext score` goes by the bytes of pictures and rewards, and takes pictures in whichever way they are named."""

import json
import sys

import pytest
from PIL import Image

from diffusers_ext import cli
from diffusers_ext.errors import InputError
from diffusers_ext.rewards import records as score_records
from diffusers_ext.rewards.records import weights_of

PROMPT = "red circle with blue background"


def run(*words) -> None:
    cli.main(["score", *map(str, words)])


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def draw(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for number, colour in enumerate(("red", "blue", "green")):
        draw(tmp_path / "p" / f"{number}.png", colour)
    return tmp_path / "p"


@pytest.fixture
def own_reward(tmp_path, monkeypatch):
    """A function of the picture alone, in a module of its own, that counts what it is given."""
    (tmp_path / "mean_reward.py").write_text(
        "import torch\nseen = []\n"
        "def reward(prompts, images):\n"
        "    seen.extend(prompts)\n"
        "    return torch.stack([image.float().mean() + image.float()[0].mean() for image in images])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mean_reward", raising=False)
    import mean_reward

    yield mean_reward
    sys.modules.pop("mean_reward", None)


ARGUMENTS = ("--prompt", PROMPT, "--reward", "mean_reward:reward", "--output")


def test_redrawn_pictures_are_scored_again_and_this_is_said(folder, own_reward, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    run(folder, *ARGUMENTS, output)
    before = rows_of(output)
    draw(folder / "1.png", "white")
    draw(folder / "2.png", "black")
    capsys.readouterr()
    run(folder, *ARGUMENTS, output)
    assert "2 pictures have changed" in capsys.readouterr().err and len(own_reward.seen) == 5
    after = rows_of(output)
    assert after[0] == before[0] and after[1]["score"] > before[1]["score"] and after[2]["score"] == 0


def test_renamed_pictures_and_copies_keep_their_scores(folder, own_reward, tmp_path):
    output = tmp_path / "scores.jsonl"
    run(folder, *ARGUMENTS, output)
    before = {row["digest"]: row["score"] for row in rows_of(output)}
    moved = folder.rename(tmp_path / "moved")
    (moved / "copy.png").write_bytes((moved / "0.png").read_bytes())
    run(moved, *ARGUMENTS, output)
    after = rows_of(output)
    assert len(after) == 4 and all(row["image"].startswith(str(moved)) for row in after) and len(own_reward.seen) == 3
    assert all(before[row["digest"]] == row["score"] for row in after)


def test_rows_of_an_earlier_version_go_by_name_and_this_is_said(folder, own_reward, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    run(folder, *ARGUMENTS, output)
    old = [{name: row[name] for name in ("image", "prompt", "reward", "score")} for row in rows_of(output)]
    output.write_text("".join(json.dumps(row) + "\n" for row in old))
    run(folder, *ARGUMENTS, output)
    assert "3 scores in" in capsys.readouterr().err and len(own_reward.seen) == 3


def test_another_reward_under_the_same_name_is_not_mixed_in(folder, own_reward, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    run(folder, *ARGUMENTS, output)
    before = output.read_bytes()
    module = tmp_path / "mean_reward.py"
    module.write_text(module.read_text().replace("image.float().mean() +", "0 *"))
    with pytest.raises(SystemExit):
        run(folder, *ARGUMENTS, output)
    assert "other weights of mean_reward:reward" in capsys.readouterr().err and output.read_bytes() == before


def test_what_a_rewards_name_stands_for(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"1")
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": {str(tmp_path / "model"): {}, "fill50k": {}}}))
    names = [
        tmp_path / "model",
        tmp_path / "ensemble.json",
        f"clip:{tmp_path / 'model'}",
        f"aesthetic:no.pth@{tmp_path / 'model'}",
    ]
    before = [weights_of(str(name)) for name in names]
    (tmp_path / "model/README.md").write_text("a card changes nothing")
    assert [weights_of(str(name)) for name in names] == before and None not in before
    (tmp_path / "model/model.safetensors").write_bytes(b"2")
    assert all(one != other for one, other in zip(before, [weights_of(str(name)) for name in names]))
    (tmp_path / "self.json").write_text(json.dumps({"members": {str(tmp_path / "self.json"): {}}}))
    assert weights_of(str(tmp_path / "self.json")) and weights_of("fill50k") is None
    assert weights_of("clip:ViT-B-32/openai") is None and weights_of("no.such.module:reward") is None


@pytest.mark.parametrize(
    "sources", [["0.png"], ["0.png", "2.png"], ["*.png"], ["[01].png", "2.png"], ["**/*.png"], ["."]]
)
def test_pictures_are_files_globs_or_a_folder(folder, own_reward, tmp_path, sources):
    draw(folder / "sub/3.png", "white")
    run(*[folder / source for source in sources], *ARGUMENTS, tmp_path / "scores.jsonl")
    wanted = {"0.png": 1, "*.png": 3, "[01].png": 3, "**/*.png": 4, ".": 4}[sources[0]] + (sources[1:] == ["2.png"]) * (
        sources[0] == "0.png"
    )
    assert len(rows_of(tmp_path / "scores.jsonl")) == wanted


def test_bad_pictures_are_all_named_before_the_reward_is_loaded(folder, tmp_path, monkeypatch, capsys):
    (folder / "0.png").write_text("<html>404</html>")
    (folder / "1.png").write_bytes(b"")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    monkeypatch.setattr("diffusers_ext.rewards.loading.load_reward", lambda name: pytest.fail("loaded"))
    with pytest.raises(SystemExit):
        run(folder, "--prompt", PROMPT, "--reward", "fill50k", "--output", tmp_path / "scores.jsonl")
    said = capsys.readouterr().err
    assert "3 of 3 pictures cannot be read" in said and all(f"{number}.png: " in said for number in range(3))
    assert all("error" in row for row in rows_of(tmp_path / "scores.jsonl"))


@pytest.mark.parametrize("name", ["pairs.jsonl", "link.jsonl", "./sub/../pairs.jsonl", "p/0.png", "hard.jsonl"])
def test_the_output_is_never_an_input(folder, tmp_path, monkeypatch, name, capsys):
    table = tmp_path / "pairs.jsonl"
    table.write_text(json.dumps({"image": "p/0.png", "text": PROMPT}) + "\n")
    (tmp_path / "link.jsonl").symlink_to(table)
    (tmp_path / "hard.jsonl").hardlink_to(table)
    (tmp_path / "sub").mkdir()
    before = table.read_bytes(), (folder / "0.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(table, "--reward", "fill50k", "--output", name)
    assert "which it would replace" in capsys.readouterr().err
    assert (table.read_bytes(), (folder / "0.png").read_bytes()) == before


def test_a_file_of_something_else_is_no_output(folder, tmp_path):
    for number, text in enumerate(
        (b"\xff\xfe", b"[1]\n[2]\n", b'{"image": 1, "prompt": "a", "reward": "b"}\n{}\n', b"[" * 10**5 + b"\n\n")
    ):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(text)
        with pytest.raises(InputError, match="name another"):
            score_records.read_records(path, "fill50k", None, {})
        assert path.read_bytes() == text
