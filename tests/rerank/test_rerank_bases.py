"""diffusers-ext rerank: published pipelines need no trust, and damaged folders are named before anything is loaded."""

import shutil

import pytest

from diffusers_ext import cli, embedded_model
from diffusers_ext.diffusion.files import BaseFiles
from diffusers_ext.errors import InputError
from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
from diffusers_ext.rewards.named import NamedReward

GIVEN = ["--reward", "fill50k", "--prompt", "gold circle with midnight blue background", "--candidates", "2"]
GIVEN += ["--num_inference_steps", "2"]


def test_a_published_pipeline_is_drawn_from(tmp_path, capsys):
    saved, out = tmp_path / "saved", tmp_path / "out"
    RewardRerankPipeline.from_pretrained(embedded_model(), reward_model=NamedReward("fill50k")).save_pretrained(saved)
    cli.main(["rerank", "--model", str(saved), "--output_dir", str(out), *GIVEN])
    assert len(list((out / "images").glob("*.png"))) == 2
    (saved / "reward_rerank.py").write_text("raise SystemExit('run')")
    cli.main(["rerank", "--model", str(saved), "--output_dir", str(tmp_path / "again"), *GIVEN])
    assert "reward: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_damaged_pipeline_is_named(tmp_path, capsys, name):
    base = shutil.copytree(embedded_model(), tmp_path / "base")
    (base / name).write_bytes((base / name).read_bytes()[:100])
    with pytest.raises(SystemExit):
        cli.main(["rerank", "--model", str(base), "--output_dir", str(tmp_path / "out"), *GIVEN])
    said = capsys.readouterr().err
    assert name in said and "Traceback" not in said


def test_a_base_that_cannot_be_downloaded_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/nothing: cannot be downloaded"):
        BaseFiles.find("nobody/nothing")
    with pytest.raises(InputError, match="nobody/nothing: cannot be downloaded"):
        BaseFiles.find(embedded_model(), "nobody/nothing")
