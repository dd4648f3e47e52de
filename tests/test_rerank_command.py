"""`diffusers-ext rerank` writes pictures, scores and a grid, and goes on where it was cut."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusers_ext.cli import main
from diffusers_ext.reranking import RewardReranker

DRAW = ["--num_inference_steps", "2", "--guidance_scale", "2", "--candidates", "5", "--chunk_size", "2", "--keep", "2"]
PROMPTS = ["gold circle with midnight blue background", "dark red circle with ivory background"]


def rerank(*arguments) -> None:
    main(["rerank", *DRAW, *map(str, arguments)])


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def whole(prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    rerank("--prompts_file", prompts, "--held_out", "fill50k:soft", "--output_dir", folder)
    return folder


def told(folder) -> list[dict]:
    return json.loads((folder / "scores.json").read_text())["prompts"]


def test_every_seed_and_score_is_told(whole):
    record = json.loads((whole / "scores.json").read_text())
    assert record["versions"]["diffusers"] and record["options"]["candidates"] == 5
    assert record["evaluations"] == 2 * 2 * 5 * 2
    for prompt, found in enumerate(record["prompts"]):
        assert found["prompt"] == PROMPTS[prompt]
        scores = [row["score"] for row in found["candidates"]]
        assert scores == sorted(scores, reverse=True) and all("held_out" in row for row in found["candidates"])
        assert sorted(row["seed"] for row in found["candidates"]) == list(range(5 * prompt, 5 * prompt + 5))
        best = Image.open(whole / found["candidates"][0]["image"])
        assert np.array_equal(np.asarray(best), np.asarray(Image.open(whole / "images" / f"{prompt:04d}-1.png")))
        assert Image.open(whole / f"grid-{prompt:04d}.png").width > 5 * 128
    assert len(list((whole / "images").iterdir())) == 4 and len(list((whole / "candidates").iterdir())) == 10


def test_an_interrupted_run_goes_on(whole, prompts, tmp_path, monkeypatch, capsys):
    folder, calls = tmp_path / "run", []
    draw = RewardReranker.__call__

    def interrupted(self, *args, **kwargs):
        calls.append(kwargs["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(RewardReranker, "__call__", interrupted)
    given = ["--prompts_file", prompts, "--held_out", "fill50k:soft", "--output_dir", folder]
    with pytest.raises(SystemExit) as stopped:
        rerank(*given)
    assert stopped.value.code == 130 and "goes on from the 4 candidates" in capsys.readouterr().out
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])  # as a kill may cut the last line
    rerank(*given)
    assert calls[3:] == [[2, 3], [4], [5, 6], [7, 8], [9]]  # the second chunk again, the first not
    assert told(folder) == told(whole)
    rerank(*given, "--keep", 1)  # nothing is drawn for this
    assert len(calls) == 8 and len(list((folder / "images").iterdir())) == 2


def test_pruned(tmp_path):
    rerank("--prompt", PROMPTS[0], "--prune", "--num_inference_steps", 4, "--output_dir", tmp_path / "run")
    rows = told(tmp_path / "run")[0]["candidates"]
    assert sorted(bool(row["image"]) for row in rows) == [False] * 3 + [True] * 2
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["evaluations"] == 2 * (5 + 2 * 4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ([], "--prompt"),
        (["--prompt", "a", "--keep", "0"], "--keep must be at least 1"),
        (["--prompt", "a", "--model", "else"], "--reward"),
        (["--prompt", "a", "--model", "no/such/folder", "--reward", "fill50k"], "no/such/folder"),
        (["--prompt", "a", "--reward", "nothing"], "nothing"),
    ],
)
def test_mistakes_are_told(wrong, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        rerank(*wrong, "--output_dir", tmp_path / "run")
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert stopped.value.code == 2 and message in said


def test_another_search_is_not_mixed_in(whole, prompts, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(SystemExit):
        rerank("--prompts_file", prompts, "--seed", 1, "--output_dir", tmp_path / "copy")
    assert "another --seed" in capsys.readouterr().err
