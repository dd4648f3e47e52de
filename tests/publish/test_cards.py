"""Every card that a training writes passes the checker, also where names, prompts and commands are meant to break it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import diffusers_ext
from diffusers_ext.control.card import write_controlnet_card
from diffusers_ext.diffusion.bases import FAMILIES
from diffusers_ext.diffusion.card import write_text_to_image_card
from diffusers_ext.image_text.card import write_image_text_card
from diffusers_ext.lads.card import lads_card
from diffusers_ext.options import SCHEDULES
from diffusers_ext.preferences.card import write_reward_card
from diffusers_ext.preferences.checks import Counts
from diffusers_ext.publish.cards.check import card_problems
from diffusers_ext.publish.cards.markdown import code, escape, fenced, literal, table
from diffusers_ext.publish.cards.pipeline import write_pipeline_card
from diffusers_ext.streams.card import write_incremental_card
from diffusers_ext.tuning.card import write_tuning_card

EVIL = 'a"b\\`c```|[x](javascript:alert(1))<script>alert(1)</script>\n---\n```\n# Free\n![p](../../etc/passwd)\n```python\n('
COUNTS = Counts(9, 27, 2, 30, 3, 2, 0)
COMMON = {
    "train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "lr_scheduler": SCHEDULES[0],
    "seed": 0,
    "resolution": 64,
}


def run_folder(tmp_path: Path, name: str, options: dict, measures: dict) -> Path:
    """A run folder of two steps, one measurement and one picture."""
    run = tmp_path / name
    (run / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(run / "samples" / "step-000002.png")
    record = {"command": options.pop("command"), "options": COMMON | options, "versions": {"torch": "2"}}
    (run / "options.json").write_text(json.dumps(record))
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}, {"step": 2, **measures}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def controlnet(tmp_path, word):
    options = {
        "command": f"train.py --data {word}",
        "num_validation_images": 2,
        "hint_init": "data",
        "streaming": True,
        "train_data_dir": word,
        "dataset_name": None,
        "condition": f"{word}:callable",
        "validation_image": None,
        "lora_rank": 4,
        "pretrained_vae_model_name_or_path": word,
    }
    run = run_folder(tmp_path, "control", options, {"gap": 0.3, "iou": 0.9})
    (run / "lora").mkdir()
    (run / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    write_controlnet_card(run, word, FAMILIES[0], 10, 2, "f" * 64)
    return run


def text_to_image(tmp_path, word):
    options = {
        "command": f"train.py --data {word}",
        "train_data_dir": word,
        "autoencoder_steps": 4,
        "autoencoder_batch_size": 2,
        "autoencoder_resolution": 32,
        "guidance_scale": 2.0,
        "validation_samples": 4,
    }
    run = run_folder(tmp_path, "small", options, {"circle_error": 3.0})
    write_text_to_image_card(run)
    return run


def reward(tmp_path, word):
    options = {"command": word, "backbone": word, "pair_weighting": "prompt", "freeze_fraction": 0.7}
    run = run_folder(tmp_path, "reward", options, {"held_out_accuracy": 0.7})
    config = {"model_type": "open_clip_reward", "reward_mean": 0.0, "reward_std": 1.0}
    (run / "config.json").write_text(json.dumps(config))
    write_reward_card(run, COUNTS, COUNTS)
    return run


def image_text(tmp_path, word):
    options = {
        "command": word,
        "unlock_text_tower": False,
        "text_tower": word,
        "projection": "linear",
        "embed_dim": 8,
        "train_data_dir": [word],
        "zero_shot_templates": [f"{word} {{}}"],
    }
    run = run_folder(tmp_path, "towers", options, {f"zero_shot/{word}": 0.5})
    config = {"model_cfg": {"vision_cfg": {"timm_model_name": word}}}
    (run / "open_clip_config.json").write_text(json.dumps(config))
    write_image_text_card(run, 10, 2)
    return run


def tuning(tmp_path, word):
    options = {
        "command": word,
        "full_unet": False,
        "method": "refl",
        "reward": word,
        "guidance_scale": 2.0,
        "num_inference_steps": 10,
    }
    measures = {"reward": 0.5, "reward_base": 0.2, "held_out_reward": 0.1, "held_out_reward_base": 0.2}
    run = run_folder(tmp_path, "tuned", options, measures | {"distance_from_base": 0.1})
    Image.new("RGB", (8, 8)).save(run / "strength.png")
    Image.new("RGB", (8, 8)).save(run / "samples" / "strength.png")
    (run / "strength.json").write_text(json.dumps([{"strength": 0.5, "reward": 0.3, "distance_from_base": 0.1}]))
    write_tuning_card(run, word, 10)
    return run


def lads(tmp_path, word):
    table = f"| method | {word} |\n| --- | --- |\n| LADS | 0.5 |"
    training = {"command": word, "options": {"alpha": word}, "counts": "9 images", "table": table, "measured_on": word}
    config = {
        "training": training,
        "backbone": word,
        "weights_digest": "f" * 64,
        "classes": [word, "b"],
        "domains": {"source": [word], "targets": {word: [word]}},
        "dim": 8,
        "networks": 1,
    }
    run = tmp_path / "lads"
    run.mkdir()
    lads_card(config, run.name).save(run / "README.md")
    return run


def incremental(tmp_path, word):
    run = run_folder(tmp_path, "stream", {"command": word, "backbone": word, "setting": "NC"}, {"accuracy": 9.0})
    (run / "protocol.json").write_text(json.dumps({"sessions": [[0]]}))
    for name in ("accuracy.png", "components.png", "samples/components.png"):
        Image.new("RGB", (8, 8)).save(run / name)
    names = ("average_incremental_accuracy", "final_accuracy", "forgetting", "worst_domain", "stored_floats")
    measures = dict.fromkeys(names, 5)
    vectors = SimpleNamespace(features=[0], classes=torch.zeros(1))
    learner = SimpleNamespace(
        classes_=[word],
        space=SimpleNamespace(counts=[1]),
        exemplars=vectors,
        learnt=SimpleNamespace(jury=vectors),
    )
    write_incremental_card(run, measures, [{"learner": "ridge", **measures}], learner)
    return run


KINDS = (controlnet, text_to_image, reward, image_text, tuning, lads, incremental)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("word", ["owner/name", EVIL], ids=["plain", "evil"])
def test_every_card_is_fit_to_publish(kind, word, tmp_path):
    folder = tmp_path / word.replace("/", "-")
    folder.mkdir()
    run = kind(folder, word)
    assert card_problems(run) == []
    tokens = parse(ModelCard.load(run / "README.md").text)
    headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert "Free" not in headings and len(headings) == len(set(headings)) > 2
    assert not {"link_open", "html_inline", "html_block", "hr"} & {token.type for token in tokens}
    assert all("passwd" not in token.attrs["src"] for token in tokens if token.type == "image")


def parse(text: str) -> list:
    """The tokens of Markdown as CommonMark has it, those within lines too."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [each for token in tokens for each in (token, *(token.children or []))]


def test_a_gallery_of_wicked_captions_stays_in_the_metadata(tmp_path):
    pipe = SimpleNamespace(name_or_path=None, reward_model=object(), components={"reward_model": None})
    write_pipeline_card(tmp_path, pipe, "me/search", [(Image.new("RGB", (8, 8)), EVIL)])
    assert card_problems(tmp_path) == []
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.widget[0]["text"] == EVIL and "alert" not in card.text


@pytest.mark.parametrize("words", [EVIL, "", "`", "``a`", "a\u202eb\x00", "ü &amp; <b>", "\ud800"])
def test_words_stay_words(words):
    assert "\n" not in escape(words) and "<" not in escape(words) and len(escape(words).encode()) < 400
    assert json.loads(literal(words)) == words == eval(literal(words))
    assert [token.type for token in parse(fenced(words, "bash"))] == ["fence"]
    assert {token.type for token in parse(f"a {escape(words)} b")[2:-1]} <= {"text", "text_special"}
    if words.strip():
        assert [token.type for token in parse(f"a {code(words)} b")[2:-1]] == ["text", "code_inline", "text"]


@pytest.mark.parametrize("word", ["wren", EVIL])
def test_a_mixture_classifier_is_saved_with_a_card(word, tmp_path):
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    learner = diffusers_ext.VMFMixtureClassifier(4, encoder=word).partial_fit(features, [word, "heron"] * 20)
    learner.save_pretrained(tmp_path / "birds")
    assert card_problems(tmp_path / "birds") == []
    assert "2 classes" in (tmp_path / "birds" / "README.md").read_text()


def test_names_read_as_before():
    assert escape("ViT-B-32/laion2b_s34b_b79k (9,000)") == "ViT-B-32/laion2b_s34b_b79k (9,000)"
    assert escape("_a_ *b* [c](d)") == r"\_a\_ \*b\* \[c\](d)"
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"
