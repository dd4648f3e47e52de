"""`diffusers-ext rerank` writes pictures, scores and a grid, and goes on where it was cut."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusers_ext.cli import main
from diffusers_ext.rerank.reranker import RewardReranker

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
    assert stopped.value.code == 130 and "continues from the 4 candidates" in capsys.readouterr().out
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


# ---- the package's own pipelines, LoRAs, and outputs that are inputs


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The package's own pipeline as it is published, with a code file that must not run."""
    from diffusers_ext import embedded_model
    from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
    from diffusers_ext.rewards.named import NamedReward

    folder = tmp_path_factory.mktemp("published")
    pipe = RewardRerankPipeline.from_pretrained(embedded_model(), reward_model=NamedReward("fill50k"))
    pipe.save_pretrained(folder)
    for code in folder.rglob("*.py"):
        code.write_text("raise SystemExit('the code of a repository ran')\n")
    return folder


def test_the_packages_own_pipeline_is_drawn_from_without_its_code(published, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    given = ["--prompt", PROMPTS[0], "--reward", "fill50k", "--output_dir", tmp_path / "run"]
    rerank("--model", published, *given)
    (found,) = told(tmp_path / "run")
    assert [row["seed"] for row in found["candidates"]] == [row["seed"] for row in told(whole)[0]["candidates"]]


def test_only_classes_of_this_package_are_taken_for_installed():
    from diffusers_ext.publish.loading import installed_class

    assert installed_class({"_class_name": ["noise_search", "NoiseSearchPipeline"]}).__name__ == "NoiseSearchPipeline"
    for name in (
        "StableDiffusionPipeline",
        ["os", "system"],
        ["no_such", "X"],
        ["../x", "X"],
        ["reward_rerank", "X"],
        [1, 2],
        None,
    ):
        assert installed_class({"_class_name": name}) is None


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    import torch
    from diffusers import UNet2DConditionModel

    from diffusers_ext import embedded_model
    from diffusers_ext.diffusion.lora import add_lora, save_lora

    unet = UNet2DConditionModel.from_pretrained(embedded_model(), subfolder="unet")
    add_lora(unet, rank=2)
    torch.manual_seed(0)
    for name, weight in unet.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("lora")
    save_lora(unet, folder)
    return folder


def pixels(folder) -> np.ndarray:
    return np.asarray(Image.open(folder / "candidates" / "0000-0000.png"), dtype=int)


def test_loras_are_put_on_with_their_weights(lora, tmp_path):
    cases = {
        "none": [],
        "zero": [f"{lora}:0"],
        "half": [f"{lora}:0.5"],
        "file": [f"{lora}/pytorch_lora_weights.safetensors:.5"],
    }
    cases["twice"] = [f"{lora}:0.25", f"{lora}:0.25"]
    for name, loras in cases.items():
        words = ["--lora", *loras] if loras else []
        rerank("--prompt", PROMPTS[0], "--candidates", 1, *words, "--output_dir", tmp_path / name)
    drawn = {name: pixels(tmp_path / name) for name in cases}
    assert np.array_equal(drawn["none"], drawn["zero"]) and np.array_equal(drawn["half"], drawn["file"])
    assert np.abs(drawn["half"] - drawn["none"]).max() > 10
    assert np.abs(drawn["half"] - drawn["twice"]).max() <= 2


def test_loras_that_cannot_be_used_are_named(lora, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for given, message in [
        (f"{tmp_path}/nowhere:0.5", "no such folder or file"),
        (f"{lora}:nan", "finite"),
        (":0.5", "no such folder or file"),
        (f"{tmp_path}/empty", "cannot be put on"),
        (f"{tmp_path}/bad.safetensors", "cannot be put on"),
    ]:
        with pytest.raises(SystemExit):
            rerank("--prompt", PROMPTS[0], "--lora", given, "--output_dir", tmp_path / "run")
        said = capsys.readouterr().err
        assert "--lora" in said and message in said


def test_prompts_inside_the_run_folder_are_not_replaced(tmp_path, capsys):
    (tmp_path / "scores.json").write_text(json.dumps(PROMPTS))
    with pytest.raises(SystemExit):
        rerank("--prompts_file", tmp_path / "scores.json", "--output_dir", tmp_path)
    assert "which it would replace" in capsys.readouterr().err
    assert json.loads((tmp_path / "scores.json").read_text()) == PROMPTS


def test_a_damaged_run_folder_is_named(tmp_path, capsys):
    for text in ("{", "[]", '{"options": 1}'):
        (tmp_path / "options.json").write_text(text)
        with pytest.raises(SystemExit):
            rerank("--prompt", PROMPTS[0], "--output_dir", tmp_path)
        assert "not the options of a rerank run" in capsys.readouterr().err
