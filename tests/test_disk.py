"""Every file of a saved folder follows the umask."""

import os

import pytest
import torch
from safetensors.torch import save_file

from diffusers_ext.disk import follow_umask
from diffusers_ext.engine.objective import Objective


@pytest.fixture(params=(0o022, 0o077, 0o027))
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_weights_get_what_configurations_have(umask, tmp_path):
    from diffusers import UNet2DModel

    objective = Objective()
    sizes = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    objective.trainable = {"unet": UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **sizes)}
    objective.save(tmp_path / "checkpoint")
    assert modes(tmp_path) == {0o666 & ~umask}


def test_only_weights_are_touched_and_links_are_not(umask, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "secret.txt").touch(mode=0o600)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link.safetensors").symlink_to(tmp_path / "secret.txt")
    follow_umask(tmp_path)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "secret.txt").stat().st_mode & 0o777 == 0o600
    assert os.umask(umask) == umask  # reading it has not changed it


def test_a_classifier_follows_it_too(umask, tmp_path):
    from diffusers_ext import VMFMixtureClassifier

    classifier = VMFMixtureClassifier(4, jury=0, transform="none", score="plugin", shrinkage=0.0)
    classifier.partial_fit(torch.randn(12, 4), ["a", "b"] * 6).save_pretrained(tmp_path / "model")
    assert modes(tmp_path) == {0o666 & ~umask}


def test_a_reward_saved_by_itself_follows_it(umask, tmp_path):
    from diffusers_ext.rewards.tiny import image_reward

    reward = image_reward(["a red circle"], width=16, layers=1, image_size=32, patch_size=16)
    reward.save_pretrained(tmp_path / "reward")
    assert modes(tmp_path) == {0o666 & ~umask}
