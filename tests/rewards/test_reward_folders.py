"""Folders and precisions of rewards: whole or refused, by every route, and scoring in every type that is documented."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from test_image_reward import PROMPTS, picture, tiny
from test_rewards import transformers_folder  # noqa: F401  a fixture
from transformers import AutoModel

import diffusers_ext
from diffusers_ext import load_reward
from diffusers_ext.errors import InputError
from diffusers_ext.preferences.backbones import load_reward_backbone
from diffusers_ext.rewards.linear_head import LinearHeadConfig, LinearHeadReward

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards") / "whole"
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(saved, tmp_path):
    """Return a function that copies the folder and changes its tensors: change(tensors) -> tensors."""

    def copy(change):
        folder = shutil.copytree(saved, tmp_path / "damaged")
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


LAYER = "vision_model.encoder.layers.1.mlp.fc1.weight"
CHANGES = {
    "missing": (lambda all: {k: v for k, v in all.items() if k != LAYER}, f"lacks 1 tensors: {LAYER}"),
    "renamed": (lambda all: {f"model.{k}": v for k, v in all.items()}, "lacks .* too many .*model.mlp"),
    "unexpected": (lambda all: all | {"mlp.layers.9.weight": torch.zeros(2)}, "too many 1 tensors: mlp.layers.9"),
    "other shape": (lambda all: all | {LAYER: torch.zeros(3, 3)}, f"other shapes of 1 tensors: {LAYER}"),
}
ROUTES = {
    "load_reward": load_reward,
    "class": diffusers_ext.ImageRewardModel.from_pretrained,
    "half": lambda folder: diffusers_ext.ImageRewardModel.from_pretrained(folder, dtype=torch.bfloat16),
    "AutoModel": lambda folder: AutoModel.from_pretrained(folder, trust_remote_code=True),
    "backbone": lambda folder: load_reward_backbone(str(folder), []),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_weights_that_are_not_the_models_are_refused_by_name(damaged, kind):
    change, message = CHANGES[kind]
    folder = damaged(change)
    for route, load in ROUTES.items():
        with pytest.raises(ValueError, match=message) as refused:
            load(folder)
        assert str(folder) in str(refused.value), route


def test_a_pipeline_refuses_its_damaged_reward(damaged, untrained, tmp_path):
    from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline

    pipe = RewardRerankPipeline.from_pretrained(untrained, reward_model=tiny())
    pipe.save_pretrained(tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / "reward_model")
    shutil.move(damaged(CHANGES["missing"][0]), tmp_path / "pipe" / "reward_model")
    with pytest.raises(Exception, match="lacks 1 tensors"):
        RewardRerankPipeline.from_pretrained(tmp_path / "pipe", trust_remote_code=True)


def test_other_shapes_pass_where_they_are_asked_for(damaged):
    folder = damaged(lambda all: all | {"mlp.layers.7.bias": torch.zeros(3)})
    model = diffusers_ext.ImageRewardModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert model.mlp.layers[7].bias.shape == (1,)


def test_trained_heads_and_clips_are_strict_too(tmp_path, request):
    head = LinearHeadReward(LinearHeadConfig(width=8))
    head.save_pretrained(tmp_path / "head")
    assert isinstance(load_reward(tmp_path / "head"), LinearHeadReward)
    clip = shutil.copytree(request.getfixturevalue("transformers_folder"), tmp_path / "clip")
    for folder, name in ((tmp_path / "head", tmp_path / "head"), (clip, f"pickscore:{clip}")):
        tensors = load_file(folder / "model.safetensors")
        first = min(tensors)
        save_file({k: v for k, v in tensors.items() if k != first}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=f"lacks 1 tensors: {first}"):
            load_reward(name)


@pytest.mark.parametrize("kept", [[], ["tokenizer_config.json"], ["vocab.json"], ["merges.txt"]])
@pytest.mark.parametrize("kind", ["clip", "pickscore"])
def test_a_clip_without_its_tokenizer_is_refused(transformers_folder, tmp_path, kind, kept):  # noqa: F811
    folder = shutil.copytree(transformers_folder, tmp_path / "clip")
    tokenizer = load_reward(f"{kind}:{folder}").clip.tokenizer
    for path in folder.glob("*token*"):
        if path.name not in kept:
            path.unlink()
    if "vocab.json" in kept:
        (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    if "merges.txt" in kept:
        (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(InputError, match=r"tokenizer") as refused:
        load_reward(f"{kind}:{folder}")
    assert str(folder) in str(refused.value)


def test_a_tokenizer_of_another_model_is_refused(transformers_folder, saved, tmp_path):  # noqa: F811
    folder = shutil.copytree(transformers_folder, tmp_path / "clip")
    tokenizer = load_reward(f"clip:{folder}").clip.tokenizer
    tokenizer.add_tokens(["<cat>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="token 54, but the text encoder 54 embeddings"):
        load_reward(f"clip:{folder}")


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"', b'{"model_type": "image_reward", "text_config": 3}'])
def test_damaged_configurations_are_named(saved, tmp_path, content):
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="copy"):
        load_reward(folder)


def test_damaged_files_are_named(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    whole = (folder / "model.safetensors").read_bytes()
    for content in (whole[:5000], b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="copy"):
            load_reward(folder)
    with pytest.raises(InputError, match=r"copy: .*model\.safetensors is a Git LFS pointer"):
        load_reward(folder)
    (tmp_path / "ImageReward.pt").write_bytes(content)
    with pytest.raises(InputError, match="Git LFS pointer"):
        diffusers_ext.ImageRewardModel.from_official_checkpoint(tmp_path / "ImageReward.pt")


@pytest.mark.parametrize("content", [b"garbage", b"<html>404</html>"])
def test_weights_that_are_no_tensors_are_named_without_advice_to_run_them(saved, tmp_path, content):
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    for load in (load_reward, lambda name: load_reward_backbone(str(name), [])):
        with pytest.raises(InputError, match=r"copy.*not a file of tensors") as refused:
            load(folder)
        assert "weights_only" not in str(refused.value)


def test_a_folder_may_end_like_an_ensemble(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "reward.json")
    assert isinstance(load_reward(folder), diffusers_ext.ImageRewardModel)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "expected an object"),
        ('{"members": ["fill50k"]}', "expected an object"),
        ('{"members": {"fill50k": {"weight": 1, "mean": 0, "std": 1}}}', "two members"),
        ('\ufeff{"members": {}}', "two members"),
        ('{"members": {"fill50k": {"mean": NaN}, "fill50k:soft": {}}}', "fill50k: .*finite"),
        ('{"members": {"fill50k": {"weight": Infinity}, "fill50k:soft": {}}}', "fill50k: .*finite"),
    ],
)
def test_ensembles_that_are_none_are_named(tmp_path, content, message):
    (tmp_path / "some.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"some.json: .*{message}"):
        load_reward(tmp_path / "some.json")


# ---------------------------------------------------------------- precisions

PRECISIONS = {
    "dtype": lambda folder, half: diffusers_ext.ImageRewardModel.from_pretrained(folder, dtype=half),
    "torch_dtype": lambda folder, half: diffusers_ext.ImageRewardModel.from_pretrained(folder, torch_dtype=half),
    "words": lambda folder, half: diffusers_ext.ImageRewardModel.from_pretrained(folder, dtype=str(half)[6:]),
    "AutoModel": lambda folder, half: AutoModel.from_pretrained(folder, dtype=half, trust_remote_code=True),
    "device_map": lambda folder, half: diffusers_ext.ImageRewardModel.from_pretrained(
        folder, dtype=half, device_map="auto"
    ),
    "to": lambda folder, half: load_reward(folder).to(half),
    "method": lambda folder, half: (
        load_reward(folder).half() if half == torch.float16 else load_reward(folder).bfloat16()
    ),
}


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_every_way_to_half_precision_scores(saved, half):
    pictures = [picture(seed) for seed in range(3)]
    exact = load_reward(saved).score(PROMPTS, pictures)
    for route, load in PRECISIONS.items():
        model = load(saved, half)
        assert model.vision_model.encoder.layers[0].mlp.fc1.weight.dtype == half, route
        scores = model.score(PROMPTS, pictures)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores.cpu(), exact, rtol=0, atol=0.03, msg=route)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_weights_saved_in_half_precision(tmp_path, half):
    pictures = [picture(seed) for seed in range(3)]
    model = tiny()
    exact = model.score(PROMPTS, pictures)
    model.to(half).save_pretrained(tmp_path)
    assert load_reward(tmp_path).dtype == torch.float32  # as it promises
    for loaded in (load_reward(tmp_path), diffusers_ext.ImageRewardModel.from_pretrained(tmp_path)):
        torch.testing.assert_close(loaded.score(PROMPTS, pictures), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_published_pipeline_in_half_precision_ranks(untrained, tmp_path, half):
    from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline

    RewardRerankPipeline.from_pretrained(untrained, reward_model=tiny()).save_pretrained(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path, dtype=half, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.reward_model.dtype == half
    best = pipe("a red circle", num_candidates=2, num_inference_steps=2, seed=0)
    assert torch.tensor(best.scores).isfinite().all()


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_head_in_half_precision(tmp_path, half):
    head = LinearHeadReward(LinearHeadConfig(width=8, head_sizes=[4]))
    head.save_pretrained(tmp_path)
    images, texts = torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1)
    exact = head(images, texts)
    for half_head in (LinearHeadReward.from_pretrained(tmp_path, dtype=half), load_reward(tmp_path).to(half)):
        torch.testing.assert_close(half_head(images, texts), exact, rtol=0, atol=0.05)


# ---------------------------------------------------------------- variants


def test_a_variant_leaves_the_other_weights_alone(untrained, tmp_path):
    from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline

    pipe = RewardRerankPipeline.from_pretrained(untrained, reward_model=tiny())
    pipe.save_pretrained(tmp_path)
    whole = (tmp_path / "reward_model" / "model.safetensors").read_bytes()
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "reward_model" / "model.safetensors").read_bytes() == whole
    half = diffusers_ext.ImageRewardModel.from_pretrained(tmp_path / "reward_model", variant="fp16", dtype="auto")
    assert half.dtype == torch.float16
    with pytest.raises(InputError, match="safetensors only"):
        tiny().save_pretrained(tmp_path / "pickle", safe_serialization=False)
