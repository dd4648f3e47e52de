"""training/train_reward_model.py: runs, resumes exactly, freezes, caches, learns; its results load elsewhere."""

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_ext
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse
from diffusers_ext.preferences import simulated as simulated_rankings
from diffusers_ext.preferences.backbones import Cache, digest_of_tensors, freeze, load_reward_backbone, prepare
from diffusers_ext.preferences.rankings import read, write
from diffusers_ext.rewards import tiny as tiny_image_reward

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "train_reward_model.py"
pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> Path:
    """Thirty prompts with three spoilt circles each, ranked by two people."""
    folder = tmp_path_factory.mktemp("rankings")
    options = {"count": 30, "images": 3, "annotators": 2, "size": 32, "basic_colours": True}
    return simulated_rankings.simulate(simulated_rankings.Options(output_dir=str(folder), **options))


@pytest.fixture(scope="module")
def start(ranked, tmp_path_factory) -> Path:
    """A tiny untrained ImageReward, 32 px."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "reward"
    texts = [prompt.prompt for prompt in read(ranked)]
    tiny_image_reward.image_reward(texts, width=32, layers=2, image_size=32, patch_size=8).save_pretrained(folder)
    return folder


def arguments(backbone, ranked, output, *more) -> list[str]:
    settings = {
        "--backbone": backbone,
        "--rankings": ranked,
        "--output_dir": output,
        "--learning_rate": 1e-3,
        "--train_batch_size": 2,
        "--validation_steps": 1000,
        "--freeze_fraction": 0,
        "--seed": 3,
    }
    return [str(word) for pair in settings.items() for word in pair] + [str(word) for word in more]


def call(*argv) -> None:
    """Run the script's main in this process."""
    script = runpy.run_path(str(SCRIPT))
    script["main"](parse(script["Options"], list(map(str, argv))))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


def test_a_run_leaves_a_reward_that_loads_and_a_card(launch, start, ranked, tmp_path):
    more = ["--max_train_steps", 4, "--validation_steps", 2]
    launch(SCRIPT, *arguments(start, ranked, tmp_path / "run", *more))
    run = tmp_path / "run"
    reward = diffusers_ext.ImageRewardModel.from_pretrained(run)
    prompts = read(ranked)
    images, texts = zip(*[(image, prompt.prompt) for prompt in prompts for image in prompt.images])
    scores = reward.score(list(texts), list(images))
    held_out = [row for row in read_metrics(run) if "held_out_accuracy" in row]
    assert [row["step"] for row in held_out] == [2, 4]
    # Normalised on the training images: all but the three held-out prompts'.
    assert abs(scores.mean()) < 0.2 and abs(scores.std() - 1) < 0.2
    assert (run / "samples" / "step-000004.png").exists() and (run / "best" / "model.safetensors").exists()
    card = (run / "README.md").read_text()
    assert f"{held_out[-1]['held_out_accuracy']:.3g}" in card and "27 prompts, 81 images" in card


def test_it_learns_from_noisy_rankings(tmp_path):
    """From random weights to well above chance on prompts never seen; benchmarks/reward_training.py goes on from there."""
    options = {"count": 120, "images": 5, "temperature": 0.1, "size": 32, "basic_colours": True}
    path = simulated_rankings.simulate(simulated_rankings.Options(output_dir=str(tmp_path / "data"), **options))
    torch.manual_seed(0)
    model = tiny_image_reward.image_reward(
        [prompt.prompt for prompt in read(path)], layers=2, image_size=32, patch_size=8
    )
    model.save_pretrained(tmp_path / "start")
    more = ["--max_train_steps", 80, "--train_batch_size", 12, "--validation_steps", 80]
    call(*arguments(tmp_path / "start", path, tmp_path / "run", *more))
    (measured,) = [row for row in read_metrics(tmp_path / "run") if "held_out_accuracy" in row]
    assert measured["held_out_accuracy_low"] > 0.5 and measured["held_out_accuracy"] > 0.58


def test_resuming_is_exact(start, ranked, tmp_path):
    common = ["--max_train_steps", 6, "--checkpointing_steps", 3, "--freeze_fraction", 0.5, "--gradient_checkpointing"]
    call(*arguments(start, ranked, tmp_path / "straight", *common))
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    call(*arguments(start, ranked, tmp_path / "cut", *common, "--resume_from_checkpoint", "latest"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "straight")
    assert weights(tmp_path / "cut") == weights(tmp_path / "straight")


def test_two_processes_take_the_steps_of_one(launch, start, ranked, tmp_path):
    """Prompts of one person and of two have 3 and 6 pairs: a mean of the ranks' means would differ at once."""
    prompts = [
        prompt if at % 2 else prompt.__class__(**{**vars(prompt), "rankings": prompt.rankings[:1]})
        for at, prompt in enumerate(read(ranked))
    ]
    uneven = write(tmp_path / "uneven.jsonl", prompts)
    common = ["--max_train_steps", 4]
    call(*arguments(start, uneven, tmp_path / "one", *common, "--train_batch_size", 4))
    launch(SCRIPT, *arguments(start, uneven, tmp_path / "two", *common), processes=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=2e-5)


def test_frozen_layers_stay_and_the_rest_learns(start, ranked, tmp_path):
    call(*arguments(start, ranked, tmp_path / "run", "--max_train_steps", 2, "--freeze_fraction", 0.5))
    before = diffusers_ext.ImageRewardModel.from_pretrained(start).state_dict()
    after = diffusers_ext.ImageRewardModel.from_pretrained(tmp_path / "run").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if re.search(r"embeddings|encoder\.layers?\.0\.", name)]
    assert {
        "vision_model.encoder.layers.1.mlp.fc1.weight",
        "text_encoder.encoder.layer.1.output.dense.weight",
    } <= changed


def test_a_cache_of_frozen_activations_changes_nothing(start, ranked, tmp_path):
    common = ["--max_train_steps", 3, "--freeze_fraction", 0.5]
    call(*arguments(start, ranked, tmp_path / "plain", *common))
    cached = [*common, "--encoder_cache_dir", tmp_path / "cache"]
    call(*arguments(start, ranked, tmp_path / "cached", *cached))
    np.testing.assert_allclose(*(list(losses(tmp_path / name).values()) for name in ("plain", "cached")), rtol=1e-4)
    (store,) = [folder for folder in (tmp_path / "cache").iterdir() if folder.is_dir()]
    shards = {path.name for path in store.glob("*.safetensors")}
    call(*arguments(start, ranked, tmp_path / "again", *cached))
    assert {path.name for path in store.glob("*.safetensors")} == shards, "nothing was encoded again"
    assert weights(tmp_path / "again") == weights(tmp_path / "cached")


def test_the_frozen_part_is_not_run_with_a_cache(start, ranked, tmp_path):
    model = load_reward_backbone(str(start), [])
    frozen, files = freeze(model, 0.5), read(ranked)[0].images
    prepared = prepare(model, frozen, files, [], Cache(tmp_path, "no"))
    model.vision_model.embeddings.forward = None  # would raise
    hidden = torch.stack([prepared.image(file) for file in files])
    rewards = prepared.rewards(["a red circle"], hidden, torch.zeros(len(files), dtype=torch.long))
    assert rewards.requires_grad and len(rewards) == len(files)
    assert digest_of_tensors(frozen) != digest_of_tensors(frozen[:1])


def test_a_head_on_open_clip(ranked, open_clip_folder, tmp_path):
    """Trained on cached embeddings, saved without the backbone, loaded by name."""
    more = ["--max_train_steps", 5, "--head_sizes", 16]
    call(*arguments(open_clip_folder, ranked, tmp_path / "run", *more))
    prompt = read(ranked)[0]
    reward = diffusers_ext.load_reward(tmp_path / "run")
    assert sum(p.numel() for p in reward.parameters()) < 2000
    scores = reward.score(prompt.prompt, list(prompt.images))
    np.testing.assert_allclose(scores[:1], reward.score([prompt.prompt], [Image.open(prompt.images[0])]), rtol=1e-4)
    assert scores.shape == (3,) and scores.std() > 0
    with pytest.raises(InputError, match="no gradient"):
        reward.score("x", torch.rand(1, 3, 8, 8, requires_grad=True))


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory) -> Path:
    """A tiny open_clip model with random weights in a folder of its own."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / "clip"
    folder.mkdir()
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    mean_std = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": mean_std}))
    return folder


def test_from_blip_for_retrieval(ranked, start, tmp_path):
    from transformers import BlipConfig, BlipForImageTextRetrieval

    tiny = load_reward_backbone(str(start), [])
    text = {**tiny.config.text_config.to_dict(), "is_decoder": True}
    blip = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=tiny.config.vision_config.to_dict()))
    blip.save_pretrained(tmp_path / "blip")
    tiny.tokenizer.save_pretrained(tmp_path / "blip")
    model = load_reward_backbone(str(tmp_path / "blip"), [])
    for name, value in blip.vision_model.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[name], value)
    call(*arguments(tmp_path / "blip", ranked, tmp_path / "run", "--max_train_steps", 1, "--max_length", 8))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_length"] == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backbone", "nowhere"], "--backbone nowhere: it has no config.json"),
        (["--rankings", "none.jsonl"], "none.jsonl: no such file"),
        (["--freeze_fraction", 1.5], "--freeze_fraction must lie in 0 to 1"),
        (["--head_sizes", 8], "--head_sizes is for a head on an open_clip model"),
        (["--random_flip", "--encoder_cache_dir", "cache"], "--random_flip: what is cached"),
        (["--max_length", 400], "--max_length must lie in 2 to 16"),
        (["--split", "val"], "no rankings of split 'val'"),
        (["--held_out_samples", 0], "no prompt with a strict pair to measure on"),
    ],
)
def test_mistakes_surface_before_anything_is_written(start, ranked, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        call(*arguments(start, ranked, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_it_would_do(start, ranked, tmp_path, capsys):
    call(*arguments(start, ranked, tmp_path / "run", "--dry_run"))
    printed = capsys.readouterr().out
    assert "27 prompts, 81 images, 2 annotators" in printed and "reward: " in printed
    assert not (tmp_path / "run").exists()


def test_what_the_validation_shares_is_not_trained_on(start, ranked, tmp_path, capsys):
    some = write(tmp_path / "some.jsonl", read(ranked)[:5])
    call(*arguments(start, ranked, tmp_path / "run", "--validation_rankings", some, "--dry_run"))
    printed = capsys.readouterr().out
    left_out = int(printed.split(" prompts are left out")[0].split()[-1])
    assert left_out >= 5 and f"training: {30 - left_out} prompts" in printed
