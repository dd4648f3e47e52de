"""Command lines written for diffusers' ControlNet scripts run here unchanged."""

import dataclasses
import inspect
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from diffusers_ext.control.options import check_attention, check_variants
from diffusers_ext.data.geometry import frame
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.diffusion.bases.clip import load_tokenizer
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse

SCRIPT = Path(__file__).parents[2] / "training" / "train_controlnet.py"
SWITCHES = [
    "allow_tf32",
    "enable_npu_flash_attention",
    "enable_xformers_memory_efficient_attention",
    "gradient_checkpointing",
    "push_to_hub",
    "scale_lr",
    "set_grads_to_none",
    "use_8bit_adam",
]
# The flags of examples/controlnet/train_controlnet.py and train_controlnet_sdxl.py, diffusers 0.40, with a value each.
VALUES = {
    **{"pretrained_model_name_or_path": "base", "controlnet_model_name_or_path": "net", "revision": "main"},
    **{"variant": "fp16", "tokenizer_name": "tokens", "output_dir": "out", "cache_dir": "cache", "seed": 42},
    **{"resolution": 512, "train_batch_size": 4, "num_train_epochs": 1, "max_train_steps": 15000},
    **{"checkpointing_steps": 500, "checkpoints_total_limit": 2, "resume_from_checkpoint": "latest"},
    **{"gradient_accumulation_steps": 4, "learning_rate": 1e-5, "lr_scheduler": "cosine", "lr_warmup_steps": 0},
    **{"lr_num_cycles": 1, "lr_power": 1.0, "dataloader_num_workers": 2, "adam_beta1": 0.9, "adam_beta2": 0.999},
    **{"adam_weight_decay": 0.01, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "hub_token": "t", "hub_model_id": "a/b"},
    **{"logging_dir": "logs", "report_to": "wandb", "mixed_precision": "fp16", "dataset_name": "fusing/fill50k"},
    **{"dataset_config_name": "default", "train_data_dir": "data", "image_column": "image"},
    **{"conditioning_image_column": "conditioning_image", "caption_column": "text", "max_train_samples": 100},
    **{"proportion_empty_prompts": 0.5, "num_validation_images": 4, "validation_steps": 100},
    **{"tracker_project_name": "controlnet", "crops_coords_top_left_h": 0, "crops_coords_top_left_w": 0},
    **{"image_interpolation_mode": "lanczos", "pretrained_vae_model_name_or_path": "vae"},
}
LISTS = {"validation_image": ["a.png", "b.png"], "validation_prompt": ["red circle", "cyan circle"]}
NEEDED = {  # flags without which nothing reads another
    **dict.fromkeys(("revision", "variant"), ("--pretrained_model_name_or_path", "base")),
    **dict.fromkeys(("cache_dir", "dataset_config_name"), ("--dataset_name", "fusing/fill50k")),
    **dict.fromkeys(("hub_token", "hub_model_id"), ("--push_to_hub",)),
    **dict.fromkeys(("logging_dir", "tracker_project_name"), ("--report_to", "tensorboard")),
}
Options = runpy.run_path(str(SCRIPT))["Options"]


@pytest.mark.parametrize("name", [*SWITCHES, *VALUES, *LISTS])
def test_every_flag_of_the_reference_parses(name):
    needed = NEEDED.get(name, ())
    if name in SWITCHES:
        assert getattr(parse(Options, [f"--{name}"]), name) is True
    elif name in VALUES:
        assert getattr(parse(Options, [f"--{name}={VALUES[name]}", *needed]), name) == VALUES[name]
    else:
        assert getattr(parse(Options, [f"--{name}", *LISTS[name], *needed]), name) == LISTS[name]


DRAWN = "--validation_image one.png two.png --validation_prompt red_circle cyan_circle"
SMALL = "--pretrained_model_name_or_path=base --output_dir=out --dataset_name=fusing/fill50k --resolution=512"


@pytest.mark.parametrize(
    "line",
    [
        f"{SMALL} --learning_rate=1e-5 {DRAWN} --train_batch_size=4",
        f"{SMALL} --learning_rate=1e-5 {DRAWN} --train_batch_size=1 --gradient_accumulation_steps=4",
        f"{SMALL} {DRAWN} --mixed_precision=fp16 --tracker_project_name=controlnet-demo --report_to=wandb",
        f"{SMALL} {DRAWN} --gradient_checkpointing --use_8bit_adam",
        f"{SMALL} --use_8bit_adam --enable_xformers_memory_efficient_attention --set_grads_to_none",
        f"{SMALL} --mixed_precision=fp16 --max_train_steps=15000 {DRAWN} --validation_steps=100 --seed=42 --push_to_hub",
    ],
)
def test_the_references_commands_parse(line):
    given = parse(Options, line.split())
    assert given.dataset_name == "fusing/fill50k" and given.set_grads_to_none


# What the flags do.


def test_a_mode_scales_as_torchvision_does():
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    names = next(field for field in dataclasses.fields(Options) if field.name == "image_interpolation_mode")
    assert set(names.metadata["choices"]) == {mode.name.lower() for mode in InterpolationMode}
    seen = set()
    for mode in InterpolationMode:
        drawn = dataclasses.replace(frame((40, 50), (20, 25)), interpolation=mode.name.lower())
        expected = np.asarray(resize(Image.fromarray(picture), [25, 20], mode))
        assert np.array_equal(drawn.apply(picture), expected)
        seen.add(expected.tobytes())
    assert len(seen) == len(InterpolationMode) - 1  # both kinds of nearest are PIL's one


def test_pictures_and_conditions_take_the_mode(pairs):
    plain, nearest = (Pairs(pairs.rows, 32, seed=0, interpolation=mode)[0, 0] for mode in (None, "nearest"))
    for name in ("pixel_values", "conditioning_pixel_values"):
        assert not torch.equal(plain[name], nearest[name])


def test_told_corners_stand_in_the_time_ids(pairs):
    true, told = (Pairs(pairs.rows, 32, seed=0, told_corner=corner)[0, 0] for corner in (None, (5, 7)))
    assert true["time_ids"].tolist() == [64, 64, 0, 0, 32, 32] and told["time_ids"].tolist() == [64, 64, 5, 7, 32, 32]
    assert torch.equal(true["pixel_values"], told["pixel_values"])


def test_another_tokenizer_is_taken_if_it_fits(untrained, tmp_path):
    from diffusers_ext.diffusion.files import BaseFiles
    from diffusers_ext.toy import tiny

    other = tiny.tokenizer(["blue square with red ground"], merges=16)
    other.save_pretrained(tmp_path / "other")
    base = BaseFiles.find(str(untrained), tokenizer_name=str(tmp_path / "other"))
    assert base.load(unet=None).tokenizer.get_vocab() == other.get_vocab()
    assert base.load_without_encoders().tokenizer is None
    tiny.tokenizer(["blue square with red ground and much more to say"], merges=24).save_pretrained(tmp_path / "large")
    with pytest.raises(InputError, match="tokens, but the base's text encoder knows"):
        load_tokenizer(str(tmp_path / "large"), str(untrained))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    for wrong in ("nowhere", tmp_path / "empty", tmp_path / "bad", untrained, untrained / "unet", tmp_path / "none"):
        with pytest.raises(
            InputError, match=f"--tokenizer_name {wrong}: no tokenizer that can be read .*; give a"
        ) as error:
            load_tokenizer(str(wrong), str(untrained))
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lora_rank", "0"], "--lora_rank must be at least 1"),
        (["--lora_rank", "4", "--controlnet_model_name_or_path", "x"], "without it"),
        (["--lora_rank", "4", "--controlnet_blocks", "1"], "leave out --controlnet_blocks"),
        (["--lora_alpha", "4"], "--lora_alpha is for --lora_rank"),
        (["--lora_target_modules", "to_q"], "--lora_target_modules is for --lora_rank"),
        (["--controlnet_blocks", "1", "--only_mid_control"], "choose one"),
    ],
)
def test_combinations_that_cannot_be_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        check_variants(parse(Options, given))


@pytest.mark.parametrize(
    ("flag", "module"),
    [("--enable_xformers_memory_efficient_attention", "xformers"), ("--enable_npu_flash_attention", "torch_npu")],
)
def test_attention_that_is_not_installed_is_refused(flag, module, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"{module}.*leave it out"):
        check_attention(parse(Options, [flag]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == module)
    check_attention(parse(Options, [flag]))


def test_attention_is_set_on_every_network():
    from diffusers_ext.control.options import set_attention

    class Network:
        def __init__(self):
            self.calls = []

        def enable_xformers_memory_efficient_attention(self):
            self.calls.append("xformers")

        def enable_npu_flash_attention(self):
            self.calls.append("npu")

    networks = Network(), Network()
    set_attention(parse(Options, []), *networks)
    set_attention(parse(Options, ["--enable_xformers_memory_efficient_attention"]), *networks)
    set_attention(parse(Options, ["--enable_npu_flash_attention"]), *networks)
    assert [network.calls for network in networks] == [["xformers", "npu"]] * 2
    from diffusers import ControlNetModel

    for name, method in inspect.getmembers(Network, inspect.isfunction):
        assert name == "__init__" or inspect.signature(getattr(ControlNetModel, name)).bind(method)
