"""The cards of published pipelines are in order, as `diffusers-ext card check` sees it."""

from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from diffusers_ext import embedded_model
from diffusers_ext.cards.check import card_problems
from diffusers_ext.cards.pipeline import write_block_card, write_code_card, write_pipeline_card
from diffusers_ext.rewards.colour import ColourReward


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
