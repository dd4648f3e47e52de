"""The cards of published pipelines are in order, as `diffusers-ext card check` sees it."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from diffusers_ext import embedded_model
from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
from diffusers_ext.publish import loadable as hub_loadable
from diffusers_ext.publish.cards.check import card_problems
from diffusers_ext.publish.cards.pipeline import write_block_card, write_code_card, write_pipeline_card
from diffusers_ext.publish.loadable import write_code_file
from diffusers_ext.rewards.colour import ColourReward

SOURCE = Path(__file__).parents[2] / "pipelines" / "reward_rerank.py"


def test_cards_have_nothing_to_mend(tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(embedded_model())
    pipe.reward_model = ColourReward()
    for name in ("pipeline", "code", "block"):
        (tmp_path / name).mkdir()
    gallery = [(Image.new("RGB", (8, 8)), "red circle, seed 3: 0.52")]
    write_pipeline_card(tmp_path / "pipeline", pipe, "me/rerank", gallery, "diffusers_ext.pipelines.reward_rerank")
    write_code_card(tmp_path / "code", type(pipe), "me/code")
    write_block_card(tmp_path / "block", type(pipe), "me/block")
    for name in ("pipeline", "code", "block"):
        assert card_problems(tmp_path / name) == []
    card = ModelCard.load(tmp_path / "pipeline" / "README.md")
    assert "reranking" in card.data.tags and "take an ensemble" in card.text
    assert str(embedded_model()) not in card.content  # a local base is nobody else's


@pytest.mark.parametrize("edit", ["", "\n# mine\n"])
def test_an_edited_copy_of_our_file_is_saved_as_it_is(edit, tmp_path, monkeypatch):
    copy = tmp_path / SOURCE.name
    copy.write_bytes(SOURCE.read_bytes() + edit.encode())
    spec = importlib.util.spec_from_file_location("a_copy", copy)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "a_copy", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr("diffusers_ext.pipelines.reward_rerank.__file__", str(SOURCE))  # of this checkout
    assert write_code_file(tmp_path / "saved", module.RewardRerankPipeline) == "reward_rerank"
    saved = (tmp_path / "saved" / "reward_rerank.py").read_text()
    assert saved.endswith("# mine\n") if edit else saved.startswith("from diffusers_ext.pipelines.reward_rerank import")


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_push_leaves_the_repositorys_card_alone(here, there, tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr(hub_loadable, "create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(hub_loadable, "file_exists", lambda *_, **__: there)
    monkeypatch.setattr(hub_loadable, "upload_folder", lambda **given: pushed.update(given))
    if here:
        (tmp_path / "README.md").write_text("mine")
    RewardRerankPipeline.from_pretrained(embedded_model()).save_pretrained(tmp_path, push_to_hub=True, repo_id="me/a")
    assert pushed["ignore_patterns"] == (["README.md"] if there else None)
    assert (tmp_path / "README.md").exists() == (here or not there)
    assert not here or (tmp_path / "README.md").read_text() == "mine"
