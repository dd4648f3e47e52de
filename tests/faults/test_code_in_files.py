"""Files that name code: whatever a downloaded folder holds, nothing of it is imported unless the user says so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffusers_ext
from diffusers_ext.commands._model_check import check_model
from diffusers_ext.embeddings.sentences import SentenceEncoder
from diffusers_ext.errors import InputError
from diffusers_ext.rewards.linear_head import LinearHeadConfig, LinearHeadReward
from diffusers_ext.rewards.loading import load_reward
from diffusers_ext.rewards.named import NamedReward, NamedRewardConfig
from diffusers_ext.rewards.tiny import image_reward

EVIL = """
import pathlib
pathlib.Path({marker!r}).mkdir()
def reward(prompts, images): return [0.0] * len(images)
class Config: pass
Tokenizer = Model = Config
"""
AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """The current folder, with a downloaded one in it whose evil.py makes the folder `executed` when it is imported."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "executed")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0, raising=False)
    yield folder
    for name in ("repo", "repo.evil"):
        sys.modules.pop(name, None)


def ensemble(path: Path, *names: str) -> Path:
    path.write_text(json.dumps({"members": {name: {} for name in (*names, "fill50k")}}))
    return path


def direct(repo):
    return lambda: load_reward(ensemble(repo / "ens.json", "repo.evil:reward"))


def nested(repo):
    ensemble(repo / "c.json", "repo.evil:reward")
    ensemble(repo / "b.json", "repo/c.json")
    return lambda: load_reward(ensemble(repo / "a.json", "repo/b.json"))


def up_and_down(repo):
    ensemble(repo / "c.json", "repo.evil:reward")
    return lambda: load_reward(ensemble(repo / "a.json", "repo/../repo/./c.json"))


def linked(repo):
    ensemble(repo / "real.json", "repo.evil:reward")
    (repo / "link.json").symlink_to("real.json")
    (repo / "folder").symlink_to(".")
    return lambda: load_reward(ensemble(repo / "a.json", "repo/folder/link.json"))


def linked_folder(repo):
    image_reward(["a"]).save_pretrained(repo / "whole")
    (repo / "reward").symlink_to("whole")
    ensemble(repo / "whole" / "config.json", "repo.evil:reward")
    return lambda: load_reward(repo / "reward")


def circle(repo):
    ensemble(repo / "b.json", "repo/a.json")
    return lambda: load_reward(ensemble(repo / "a.json", "repo/b.json"))


def odd_names(repo):
    return lambda: load_reward(
        ensemble(repo / "a.json", "repo.evil:reward", "clip:x.json", "aesthetic:repo.evil:reward")
    )


def named_config(repo):
    return lambda: NamedReward(NamedRewardConfig(name="repo.evil:reward"))


def named_folder(repo):
    NamedRewardConfig(name="repo.evil:reward").save_pretrained(repo)
    return lambda: NamedReward.from_pretrained(repo)


def named_ensemble(repo):
    NamedRewardConfig(name=str(ensemble(repo / "ens.json", "repo.evil:reward"))).save_pretrained(repo)
    return lambda: NamedReward.from_pretrained(repo)


def named_list(repo):
    (repo / "config.json").write_text(json.dumps({"model_type": "named_reward", "name": ["repo.evil:reward"]}))
    return lambda: NamedReward.from_pretrained(repo)


def head_of_code(repo):
    LinearHeadReward(LinearHeadConfig(width=4, backbone="repo.evil:reward")).save_pretrained(repo)
    return lambda: load_reward(repo).score("a", torch.zeros(3, 8, 8))


def tokenizer_kwargs(repo):
    """open_clip would pass on what a downloaded file says."""
    import open_clip

    text = {
        "width": 16,
        "heads": 2,
        "layers": 1,
        "hf_tokenizer_name": "x",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    }
    plain = config | {"text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    (repo / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config | {"text_cfg": text}, "preprocess_cfg": {}})
    )
    from safetensors.torch import save_file

    model = open_clip.CLIP(**{key: value for key, value in plain.items()})
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, repo / "open_clip_model.safetensors")
    evil_tokenizer(repo)
    LinearHeadReward(LinearHeadConfig(width=8, backbone=str(repo))).save_pretrained(repo)
    return lambda: load_reward(repo).score("a", torch.zeros(3, 8, 8))


def evil_tokenizer(folder: Path) -> None:
    settings = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def with_auto_map(folder: Path, **changes: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP} | changes))


def clip_of_code(repo):
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**shape, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config={**shape, "vocab_size": 60}, vision_config=vision)).save_pretrained(repo)
    with_auto_map(repo)
    evil_tokenizer(repo)
    return lambda: load_reward(f"clip:{repo}")


def clip_of_unknown_type(repo):
    load = clip_of_code(repo)
    with_auto_map(repo, model_type="evil")
    return load


def sentence_encoder(repo):
    (repo / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": AUTO_MAP}))
    evil_tokenizer(repo)
    return lambda: SentenceEncoder(repo)


def kernel(repo):
    """transformers downloads attention kernels by their names."""
    image_reward(["a"]).save_pretrained(repo)
    with_auto_map(repo, attn_implementation="somebody/evil-kernel")
    return lambda: load_reward(repo)


def part_of_code(repo):
    shutil.copytree(diffusers_ext.embedded_model(), repo / "pipe")
    index = json.loads((repo / "pipe" / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "AutoModel"]
    (repo / "pipe" / "model_index.json").write_text(json.dumps(index))
    part = repo / "pipe" / "feature_extractor"
    part.mkdir(exist_ok=True)
    shutil.copy(repo / "evil.py", part)
    (part / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": AUTO_MAP}))
    return lambda: check_model(str(repo / "pipe"), say=str)


ATTACKS = [
    direct,
    nested,
    up_and_down,
    linked,
    linked_folder,
    circle,
    odd_names,
    named_config,
    named_folder,
    named_ensemble,
]
ATTACKS += [named_list, head_of_code, tokenizer_kwargs, clip_of_code, clip_of_unknown_type, sentence_encoder, kernel]
ATTACKS += [part_of_code]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_code_that_a_file_names_is_refused(attack, repo, tmp_path):
    load = attack(repo)
    with pytest.raises(InputError):
        load()
    assert not (tmp_path / "executed").exists() and "repo.evil" not in sys.modules


def test_an_image_reward_with_auto_map_loads_without_its_code(repo, tmp_path):
    image_reward(["a red circle"]).save_pretrained(repo)
    with_auto_map(repo)
    settings = json.loads((repo / "tokenizer_config.json").read_text())
    (repo / "tokenizer_config.json").write_text(
        json.dumps(settings | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
    )
    assert load_reward(repo).score("a red circle", torch.zeros(3, 8, 8)).isfinite().all()
    assert not (tmp_path / "executed").exists()


def test_the_user_may(repo, tmp_path):
    """One's own argument, and one's own file with one's own word for it."""
    (repo / "mine.py").write_text("def reward(prompts, images): return [1.0] * len(images)\n")
    own = ensemble(repo / "own.json", "repo.mine:reward")
    assert load_reward("repo.mine:reward").score("a", torch.zeros(3, 8, 8)).item() == 1
    trusted = load_reward(own, trust_remote_code=True)
    assert trusted.names == ["repo.mine:reward", "fill50k"]
    assert NamedReward(str(own), trust_remote_code=True).reward.names == trusted.names
    for name in ("repo.mine:reward", str(own)):
        with pytest.raises(InputError, match="may not name code"):
            NamedReward(name, trust_remote_code=True).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


PROGRAM = """
import sys
import diffusers_ext.rewards.named
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained("repo/pipe", trust_remote_code=False)
"""


@pytest.mark.parametrize("name", ["repo.evil:reward", "repo/ens.json", "fill50k"])
def test_a_pipelines_component_names_no_code(repo, tmp_path, name):
    """In a process of its own, as the class must have been imported for diffusers to find it."""
    ensemble(repo / "ens.json", "repo.evil:reward")
    shutil.copytree(diffusers_ext.embedded_model(), repo / "pipe")
    index = json.loads((repo / "pipe" / "model_index.json").read_text())
    index["image_encoder"] = ["diffusers_ext.rewards.named", "NamedReward"]
    (repo / "pipe" / "model_index.json").write_text(json.dumps(index))
    NamedRewardConfig(name=name).save_pretrained(repo / "pipe" / "image_encoder")
    package = str(Path(diffusers_ext.__file__).parents[1])
    environment = {**os.environ, "DIFFUSERS_DISABLE_REMOTE_CODE": "1", "PYTHONPATH": f"{package}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (name == "fill50k"), done.stderr[-2000:]
    assert not (tmp_path / "executed").exists()


def test_a_pipeline_with_code_is_refused_before_anything_is_written(repo, tmp_path, untrained):
    from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline

    (repo / "mine.py").write_text("def reward(prompts, images): return [1.0] * len(images)\n")
    pipe = RewardRerankPipeline.from_pretrained(untrained, reward_model=NamedReward("repo.mine:reward"))
    with pytest.raises(InputError, match="may not name code"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
