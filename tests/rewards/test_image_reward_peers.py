"""ImageRewardModel as transformers' and accelerate's own tests use a model, and ImageReward's own interface."""

import copy
import inspect
import json

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from test_image_reward import PROMPTS, picture, tiny

import diffusers_ext.imagereward as RM
from diffusers_ext import ImageRewardModel
from diffusers_ext.errors import InputError
from diffusers_ext.rewards.image_reward_layers import ImageRewardOutput


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "model"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def inputs(model, pictures):
    return {**model.tokenize(PROMPTS), "pixel_values": model.preprocess(pictures)}


def offloaded(model, folder, tmp_path):
    load = ImageRewardModel.from_pretrained
    places = {"offload_folder": tmp_path / "offload"}
    yield load(folder, device_map="auto", max_memory={"cpu": "250KB"}, **places)
    yield load(folder, device_map={"": "disk"}, dtype=torch.float32, **places)
    yield cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    yield disk_offload(copy.deepcopy(model), str(tmp_path / "disk"), execution_device=torch.device("cpu"))


def test_offloaded_models_score_the_same(model, folder, pictures, inputs, tmp_path):
    expected = model.score(PROMPTS, pictures)
    for loaded in offloaded(model, folder, tmp_path):
        assert any(parameter.is_meta for parameter in loaded.parameters())
        assert torch.equal(loaded.score(PROMPTS, pictures), expected)
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs), model(**inputs))


def test_both_attentions_agree_and_no_other_is_loaded(model, folder, pictures):
    expected = model.score(PROMPTS, pictures)
    fused = ImageRewardModel.from_pretrained(folder, attn_implementation="sdpa")
    assert torch.equal(fused.score(PROMPTS, pictures), expected)
    eager = ImageRewardModel.from_pretrained(folder, attn_implementation="eager")
    torch.testing.assert_close(eager.score(PROMPTS, pictures), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(eager.score_matrix(PROMPTS, pictures[:1]), model.score_matrix(PROMPTS, pictures[:1]))
    with pytest.raises(ValueError, match="sdpa"):
        ImageRewardModel.from_pretrained(folder, attn_implementation="somebody/kernels")


def test_outputs(folder, inputs):
    eager = ImageRewardModel.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        rewards = eager(**inputs)
        output = eager(**inputs, output_hidden_states=True, output_attentions=True)
        assert isinstance(rewards, torch.Tensor) and isinstance(output, ImageRewardOutput)
        torch.testing.assert_close(output.rewards, rewards)
        assert len(output.hidden_states) == 3 and len(output.attentions) == len(output.cross_attentions) == 2
        assert output.hidden_states[-1].shape[:2] == (9, inputs["input_ids"].shape[1])
        assert len(output.image_hidden_states) == 3 and output.image_attentions[0].shape[:2] == (3, 4)
        assert torch.equal(eager(**inputs, return_dict=True)[0], rewards)
        assert torch.equal(eager(**inputs, return_dict=False)[0], rewards)
        eager.config.output_hidden_states = True
        assert len(eager(**inputs).hidden_states) == 3
    with pytest.raises(InputError, match="eager"):
        tiny()(**inputs, output_attentions=True)


def test_what_berts_tokenizer_returns_is_taken(model, pictures):
    tokens = model.tokenizer(PROMPTS, padding=True, return_tensors="pt", return_token_type_ids=True)
    assert "token_type_ids" in tokens
    pixels = model.preprocess(pictures)
    with torch.no_grad():
        torch.testing.assert_close(model(**tokens, pixel_values=pixels), model.score_matrix(PROMPTS, pictures))
        ids = tokens["input_ids"][:1, :5]
        torch.testing.assert_close(model(ids, pixel_values=pixels), model(ids, torch.ones_like(ids), pixels))
    with pytest.raises(InputError, match="pixel_values"):
        model(**tokens)


def test_embeddings_can_be_resized(pictures, tmp_path):
    model = tiny()
    expected = model.score(PROMPTS, pictures)
    model.resize_token_embeddings(40)
    assert model.config.text_config.vocab_size == 40
    assert torch.equal(model.score(PROMPTS, pictures), expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(ImageRewardModel.from_pretrained(tmp_path).score(PROMPTS, pictures), expected)


def test_from_a_state_dict_and_from_shards(model, folder, pictures, tmp_path):
    expected = model.score(PROMPTS, pictures)
    loaded = ImageRewardModel.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    loaded.tokenizer = model.tokenizer
    assert torch.equal(loaded.score(PROMPTS, pictures), expected)
    with pytest.raises(InputError, match=r"these weights.*lacks 1 tensors: mlp\.layers\.0\.bias"):
        short = {name: value for name, value in model.state_dict().items() if name != "mlp.layers.0.bias"}
        ImageRewardModel.from_pretrained(None, config=model.config, state_dict=short)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(ImageRewardModel.from_pretrained(tmp_path).score(PROMPTS, pictures), expected)
    again, report = ImageRewardModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and torch.equal(again.score(PROMPTS, pictures), expected)


def test_gradient_checkpointing_can_be_switched(pictures, inputs):
    model = tiny()
    model.gradient_checkpointing_enable()
    model.train()
    model(**inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.gradient_checkpointing_disable()


def test_signatures_say_what_is_taken():
    taken = inspect.signature(ImageRewardModel.save_pretrained).parameters
    assert {"safe_serialization", "variant", "max_shard_size", "push_to_hub"} <= set(taken)
    assert {"config", "revision", "token", "subfolder"} <= set(
        inspect.signature(ImageRewardModel.from_pretrained).parameters
    )
    pushed = inspect.signature(ImageRewardModel.push_to_hub).parameters
    assert {"commit_message", "create_pr", "private", "revision"} <= set(pushed)
    assert not any(parameter.kind == parameter.VAR_KEYWORD for parameter in pushed.values())


# ---------------------------------------------------------------- ImageReward's own interface


def names_of(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_signatures_are_the_official_ones():
    assert names_of(RM.load) == ["name", "device", "download_root", "med_config"]
    assert inspect.signature(RM.load).parameters["name"].default == "ImageReward-v1.0"
    assert names_of(RM.ImageReward.score) == ["prompt", "image"]
    assert names_of(RM.ImageReward.inference_rank) == ["prompt", "generations_list"]
    assert names_of(RM.ImageReward.score_gard) == ["prompt_ids", "prompt_attention_mask", "image"]
    assert RM.available_models() == ["ImageReward-v1.0"]


def test_the_official_example_runs_line_by_line(model, folder, pictures, tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, image in zip(paths, pictures):
        image.save(path)
    reward = RM.load(name=str(folder), device="cpu", download_root=str(tmp_path))
    expected = model.score(PROMPTS[0], pictures).tolist()
    with torch.no_grad():
        ranking, rewards = reward.inference_rank(PROMPTS[0], paths)
        assert rewards == pytest.approx(expected, abs=1e-6) and sorted(ranking) == [1, 2, 3]
        assert ranking[rewards.index(max(rewards))] == 1 and ranking[rewards.index(min(rewards))] == 3
        for index, image in enumerate(paths):
            assert f"{reward.score(PROMPTS[0], image):.2f}" == f"{expected[index]:.2f}"
        assert json.loads(json.dumps(reward.score(PROMPTS[0], pictures))) == pytest.approx(expected, abs=1e-6)
        assert reward.score(PROMPTS[0], paths[:1]) == pytest.approx(expected[:1], abs=1e-6)
        tokens = reward.blip.tokenizer(
            PROMPTS[0], padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )
        pixels = reward.preprocess(pictures[0]).unsqueeze(0).to(reward.device)
        gard = reward.score_gard(tokens.input_ids, tokens.attention_mask, pixels)
    assert gard.shape == (1, 1) and float(gard) == pytest.approx(expected[0], abs=2e-6)


def test_the_official_file_and_what_is_missing(model, pictures, tmp_path, monkeypatch):
    from test_image_reward import TEXT, official_names

    monkeypatch.setattr(ImageRewardModel, "from_official_checkpoint", small(ImageRewardModel.from_official_checkpoint))
    torch.save(official_names(model), tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps({**TEXT, "max_position_embeddings": 64}))
    with pytest.raises(InputError, match=r"no tokenizer\.json beside the weights"):
        RM.load(str(tmp_path / "ImageReward.pt"), med_config=str(tmp_path / "med_config.json"))
    model.tokenizer.save_pretrained(tmp_path)
    for name in ("ImageReward-v1.0", str(tmp_path / "ImageReward.pt")):
        reward = RM.load(name, "cpu", str(tmp_path), str(tmp_path / "med_config.json"))
        assert reward.score(PROMPTS[0], pictures[0]) == pytest.approx(
            model.score(PROMPTS[0], pictures[0]).item(), abs=1e-6
        )
    with pytest.raises(InputError, match="available models"):
        RM.load("ImageReward-v2.0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"ImageReward\.pt: not in .*nowhere.* cannot be downloaded"):
        RM.load(download_root=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="one text"):
        reward.score([PROMPTS[0]], pictures[0])


def small(convert):
    vision = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "image_size": 32, "intermediate_size": 96}
    return lambda path, text, _, tokenizer: convert(path, text, vision, tokenizer)
