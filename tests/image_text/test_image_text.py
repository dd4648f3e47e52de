"""Image-text training: the loss against its definition, the captions drawn, a run end to end, a model open_clip loads."""

import json
import math
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from diffusers_ext import randomness
from diffusers_ext.data.files import Row
from diffusers_ext.embeddings.backbones import load_backbone
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.image_text.captioned import ImageTexts, distinct_captions
from diffusers_ext.image_text.objective import ImageTextObjective, contrastive_loss
from diffusers_ext.image_text.towers import new_model, save, text_activations
from diffusers_ext.image_text.zero_shot import class_embeddings, class_texts, recall_at, zero_shot_accuracy
from diffusers_ext.options import parse

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
STYLES = ("plain", "striped")
SCRIPT = Path(__file__).parents[2] / "training" / "train_image_text.py"


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    draws = randomness.generator(seed, "unit", *shape).standard_normal(shape)
    return F.normalize(torch.from_numpy(draws), dim=-1)


def picture(colour: str, style: str, number: int) -> Image.Image:
    pixels = np.empty((40, 40, 3), np.uint8)
    pixels[:] = COLOURS[colour]
    if style == "striped":
        pixels[::4] = 255
    pixels[: number + 1, : number + 1] = 0  # every one is another file
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four colours in two styles, six pictures each, with captions and labels."""
    root, rows = tmp_path_factory.mktemp("data") / "colours", []
    root.mkdir()
    for colour in COLOURS:
        for style in STYLES:
            for number in range(6):
                name = f"{colour}-{style}-{number}.png"
                picture(colour, style, number).save(root / name)
                texts = [f"a {style} {colour} square", f"{colour}"]
                rows.append({"file_name": name, "text": texts, "label": colour, "domain": style})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vision") / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return f"timm:test_efficientnet@{path},size=32"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small BERT with random weights, and a tokenizer of words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "square", *STYLES, *COLOURS]
    path = tmp_path_factory.mktemp("text")
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **shape)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def towers(vision, text):
    return new_model(vision, str(text), width=16, context_length=12)


# ---------------------------------------------------------------- the loss


def test_without_duplicates_the_loss_is_clips():
    from open_clip.loss import ClipLoss

    images, texts = unit(6, 8), unit(6, 8, seed=1)
    ours = contrastive_loss(20 * images, texts, 20 * images, texts, torch.zeros(6, 6, dtype=torch.bool), 0)
    torch.testing.assert_close(ours, ClipLoss()(images, texts, torch.tensor(20.0)))


def test_equal_captions_are_no_negatives():
    images, texts = unit(4, 8), unit(4, 8, seed=1)
    texts[2] = texts[0]
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    found = contrastive_loss(5 * images, texts, 5 * images, texts, same, 0)
    logits, wanted = 5 * images @ texts.T, 0.0
    for rows in (logits, logits.T):
        for i in range(4):
            others = [j for j in range(4) if not (same[i, j] and i != j)]
            wanted -= (rows[i, i] - rows[i, others].logsumexp(0)) / 8
    torch.testing.assert_close(found, wanted)


def test_the_loss_of_parts_is_that_of_the_whole():
    """Two processes' halves, each against all: their mean, and gradients, are those of one process."""
    images, texts = (10 * unit(6, 8)).requires_grad_(), unit(6, 8, seed=1).requires_grad_()
    same = torch.eye(6, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    whole = contrastive_loss(images, texts, images, texts, same, 0)
    halves = [
        contrastive_loss(images[at : at + 3], texts[at : at + 3], images, texts, same[at : at + 3], at) for at in (0, 3)
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (images, texts)) for loss in (sum(halves) / 2, whole))):
        torch.testing.assert_close(ours, theirs)


def test_the_scale_stops_at_a_hundred(towers):
    objective = ImageTextObjective(towers.model)
    batch = {"image": torch.randn(3, 256), "text": torch.randn(3, 32)}
    batch |= {"same_text": torch.arange(3), "same_image": torch.arange(3)}
    width = objective.image_projection.proj.in_features
    batch["image"] = torch.randn(3, width)
    with torch.no_grad():
        kept = objective.logit_scale.clone()
        objective.logit_scale.fill_(math.log(500))
        assert objective(batch)["logit_scale"] == 100
        objective.logit_scale.copy_(kept)


# ---------------------------------------------------------------- the data


def rows_of(*captions: tuple[str, ...]) -> list[Row]:
    return [Row(f"{index}.png", texts, None, "") for index, texts in enumerate(captions)]


def test_captions_are_drawn_by_epoch_and_sample():
    rows = rows_of(("a", "b", "c"), ("A.", "d"), ("e",))
    images = torch.tensor([[1.0], [2.0], [1.0]])
    data = ImageTexts(rows, images, torch.arange(6.0)[:, None], seed=1)
    assert distinct_captions(rows) == ["a", "b", "c", "A.", "d", "e"]
    drawn = [data[epoch, 0]["text"].item() for epoch in range(60)]
    assert set(drawn) == {0, 1, 2} and drawn == [data[epoch, 0]["text"].item() for epoch in range(60)]
    assert data[0, 0]["same_image"] == data[5, 2]["same_image"] != data[0, 1]["same_image"]
    names = {data[epoch, 0]["text"].item(): data[epoch, 0]["same_text"].item() for epoch in range(60)}
    other = {data[epoch, 1]["text"].item(): data[epoch, 1]["same_text"].item() for epoch in range(60)}
    assert names[0] == other[3] and len({*names.values(), *other.values()}) == 4  # "a" and "A." are one text


# ---------------------------------------------------------------- measures


def test_measures_on_a_case_by_hand():
    images = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.9]]), dim=1)
    classes = torch.eye(2)
    assert zero_shot_accuracy(images, classes, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    texts = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 1.0], [1.0, 0.2]]), dim=1)
    owner = torch.tensor([0, 1, 2, 0])
    assert recall_at(images, texts, owner, 1) == (1.0, 1.0)
    assert recall_at(images, texts[:3], torch.tensor([1, 1, 0]), 1)[0] == pytest.approx(1 / 3)
    assert class_texts(["dog", "cat"], ["a {}", "my {}"]) == ["a dog", "a cat", "my dog", "my cat"]
    embedded = unit(4, 8).float()
    torch.testing.assert_close(class_embeddings(embedded, 2)[1], F.normalize(embedded[1] + embedded[3], dim=0))


# ---------------------------------------------------------------- the model


def test_cached_activations_are_the_models_own(towers, folder, tmp_path):
    texts = ["a red square", "blue", "a striped green square"]
    objective = ImageTextObjective(towers.model).eval()
    with torch.no_grad():
        found = objective.texts(text_activations(towers, texts, tmp_path))
        text_activations(towers, texts, tmp_path)  # the tokenizer was used meanwhile: it is the same one still
        assert len(list(tmp_path.glob("pooled-texts-*/*.safetensors"))) == 1
        wanted = F.normalize(towers.model.eval().encode_text(towers.tokenizer(texts)), dim=1)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        files = sorted(folder.glob("red*.png"))
        seen = objective.images(towers.vision.embed_images(files))
    saved = load_backbone(str(save(towers, tmp_path / "model")))
    torch.testing.assert_close(saved.embed_images(files), seen, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(saved.embed_texts(texts), wanted, atol=1e-5, rtol=1e-4)


def test_open_clip_loads_it_and_it_may_be_moved(towers, folder, tmp_path):
    import open_clip

    place = save(towers, tmp_path / "model")
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{place}")
    with torch.no_grad():
        image = prepare(Image.open(folder / "red-plain-0.png"))[None]
        found = F.normalize(model.eval().encode_image(image), dim=1)
    torch.testing.assert_close(
        found, load_backbone(str(place)).embed_images([folder / "red-plain-0.png"]), atol=1e-5, rtol=1e-4
    )
    named = json.loads((save(towers, tmp_path / "pushed", "me/colours") / "open_clip_config.json").read_text())
    assert named["model_cfg"]["text_cfg"]["hf_model_name"] == "me/colours"
    place.rename(tmp_path / "moved")
    texts = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'moved'}")(["a red square"])
    with torch.no_grad():
        wanted = F.normalize(model.encode_text(texts), dim=1)
    torch.testing.assert_close(
        load_backbone(str(tmp_path / "moved")).embed_texts(["a red square"]), wanted, atol=1e-5, rtol=1e-4
    )


def test_an_unlocked_text_tower_learns_and_a_locked_one_does_not(vision, text):
    batch = {"same_text": torch.arange(3), "same_image": torch.arange(3)}
    for unlocked in (True, False):
        towers = new_model(vision, str(text), width=16, projection="mlp", context_length=12)
        objective = ImageTextObjective(towers.model, unlocked)
        batch["image"] = torch.randn(3, towers.vision.width)
        batch["text"] = towers.tokenizer(["red", "a blue square", "green"]) if unlocked else torch.randn(3, 32)
        objective(batch)["loss"].backward()
        learning = {name for name, value in objective.named_parameters() if value.grad is not None}
        assert unlocked == any(name.startswith("text_tower") for name in learning)
        assert "logit_scale" in learning and any(name.startswith("image_projection") for name in learning)


# ---------------------------------------------------------------- the script


def arguments(vision, text, folder, output, *more) -> list[str]:
    given = {
        "--vision_tower": vision,
        "--text_tower": text,
        "--train_data_dir": folder,
        "--held_out_data_dir": folder,
        "--zero_shot_data_dir": folder,
        "--output_dir": output,
        "--embed_dim": 16,
        "--context_length": 12,
        "--train_batch_size": 16,
        "--max_train_steps": 6,
        "--checkpointing_steps": 3,
        "--lr_warmup_steps": 0,
        "--encoder_cache_dir": output.parent / "cache",
    }
    return [str(word) for pair in given.items() for word in pair] + [*map(str, more)]


def call(*words: str) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["main"](parse(script["Options"], list(words)))


def test_a_run_resumes_exactly_and_is_a_model(vision, text, folder, tmp_path, launch):
    launch(SCRIPT, *arguments(vision, text, folder, tmp_path / "whole", "--learning_rate", "0.01"))
    whole = tmp_path / "whole"
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    measured = rows[-1]
    assert {"zero_shot/colours", "zero_shot/colours/plain", "zero_shot/colours/striped"} <= set(measured)
    assert {"image_to_text_r1", "text_to_image_r5"} <= set(measured)
    assert rows[-2]["loss"] < rows[0]["loss"]
    card = (whole / "README.md").read_text()
    assert "zero_shot/colours" in card and "test_efficientnet and" in card
    assert load_backbone(str(whole)).embed_texts(["a red square"]).shape == (1, 16)

    shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    (tmp_path / "cut" / "open_clip_model.safetensors").unlink()
    more = ("--learning_rate", "0.01", "--resume_from_checkpoint", "latest")
    call(*arguments(vision, text, folder, tmp_path / "cut", *more))
    ours, theirs = (load_file(tmp_path / run / "open_clip_model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_processes_take_the_steps_of_one(vision, text, folder, tmp_path, launch):
    """All pairs of a step are each other's negatives, on whichever process they lie."""
    for name, processes, batch in (("one", 1, 16), ("two", 2, 8)):
        more = ("--learning_rate", "0.01", "--train_batch_size", batch)
        launch(SCRIPT, *arguments(vision, text, folder, tmp_path / name, *more), processes=processes)
    losses = [[row["loss"] for row in read_metrics(tmp_path / name) if "loss" in row] for name in ("one", "two")]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=2e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vision_tower", "resnet50"], "--vision_tower resnet50: give timm:"),
        (["--text_tower", "nowhere/at/all"], "--text_tower nowhere/at/all"),
        (["--zero_shot_templates", "a photo"], "template 'a photo': needs {} once"),
        (["--zero_shot_label_column", "kind"], "no label under 'kind'"),
        (["--push_to_hub"], "--hub_model_id is missing"),
        (["--caption_column", "words"], "no caption under 'words'"),
    ],
)
def test_mistakes_are_named(vision, text, folder, tmp_path, more, message):
    with pytest.raises(InputError) as error:
        call(*arguments(vision, text, folder, tmp_path / "run", *more))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
