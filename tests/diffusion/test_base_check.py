"""A base that is no base, or not whole, is refused by name before anything is loaded; relatives of Stable Diffusion too."""

import json
import pickle
import shutil
import struct
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import KarrasDiffusionSchedulers
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from diffusers_ext import embedded_model
from diffusers_ext.commands._model_check import check_model
from diffusers_ext.control.hint import new_controlnet
from diffusers_ext.diffusion.base import check_base, check_controlnet, load_base
from diffusers_ext.diffusion.bases.clip import cut_captions, load_tokenizer
from diffusers_ext.diffusion.check import check_vae
from diffusers_ext.diffusion.files import BaseFiles
from diffusers_ext.diffusion.paths import path_of
from diffusers_ext.diffusion.sampler import Sampler
from diffusers_ext.errors import InputError
from diffusers_ext.publish.loading import check_pipeline_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3438167534\n"
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def base(tmp_path) -> Path:
    return Path(shutil.copytree(embedded_model(), tmp_path / "base"))


def refused(check, *arguments) -> str:
    with pytest.raises(InputError) as error:
        check(*arguments)
    return str(error.value)


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def as_variant(base: Path, variant: str, *names: str) -> None:
    for name in names:
        path = base / name
        path.rename(path.with_name(f"{path.stem}.{variant}{path.suffix}"))


def test_a_base_is_accepted_in_every_form(base):
    check_base(str(base))
    as_variant(base, "fp16", UNET, VAE)  # the text encoder has plain files only, as some repositories do
    check_base(str(base), "fp16")
    shutil.copytree(embedded_model(), base, dirs_exist_ok=True)
    pipe = load_base(base)
    (base / UNET).unlink()
    pipe.unet.save_pretrained(base / "unet", max_shard_size="2MB")
    torch.save(load_file(base / VAE), (base / VAE).with_suffix(".bin"))
    (base / VAE).unlink()
    check_base(str(base))
    state = load_file(embedded_model() + "/" + VAE)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in names.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    save_file(state, base / VAE, {"format": "pt"})  # as released before diffusers 0.17
    check_base(str(base))


@pytest.mark.parametrize("name", [UNET, VAE, TEXT, "tokenizer/tokenizer.json", "model_index.json", "unet/config.json"])
def test_pointers_of_git_lfs(base, name):
    (base / name).write_text(POINTER)
    assert name in refused(check_base, str(base))
    assert "Git LFS pointer" in refused(check_base, str(base))
    assert "Git LFS pointer" in refused(check_pipeline_files, base)
    assert name in refused(check_model, str(base), None, lambda line: None)


@pytest.mark.parametrize(
    "name",
    [
        *("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"),
        *("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    ],
)
@pytest.mark.parametrize("content", ["", "{", '{"a": 1, "b', "[1]", "null"])
def test_cut_json(base, name, content):
    (base / name).write_text(content)
    said = refused(check_base, str(base))
    assert name in said or name.startswith("tokenizer"), said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (UNET, b""),
        (UNET, b"<!DOCTYPE html><title>404</title>"),
        (TEXT, struct.pack("<Q", 10**12) + b"{}"),
        (VAE, None),
    ],
)
def test_damaged_weights(base, name, content):
    path = base / name
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    assert name in refused(check_base, str(base))


def test_variants(base):
    said = refused(check_base, str(base), "fp16")
    assert "no weights of the variant fp16; leave out --variant" in said
    as_variant(base, "fp16", UNET)
    assert "unet: has weights of the variant fp16 only; give --variant fp16" in refused(check_base, str(base))
    as_variant(base, "bf16", VAE)
    assert "vae: no weights of the variant fp16, but of bf16" in refused(check_base, str(base), "fp16")


def test_missing_shards_tensors_and_files(base):
    load_base(base).unet.save_pretrained(base / "unet", max_shard_size="2MB")
    (base / UNET).unlink(missing_ok=True)
    shards = sorted((base / "unet").glob("*-of-*.safetensors"))
    shards[0].unlink()
    assert f"such as {shards[0].name}" in refused(check_base, str(base))
    for path in (base / "unet").glob("diffusion*"):
        path.unlink()
    assert "unet: no weights" in refused(check_base, str(base))
    shutil.copyfile(embedded_model() + "/" + UNET, base / UNET)
    state = load_file(base / TEXT)
    name = next(name for name in state if "layers.1" in name)
    save_file({key: value for key, value in state.items() if key != name}, base / TEXT, {"format": "pt"})
    assert "text_encoder: 1 weights are missing" in refused(check_base, str(base))
    shutil.copyfile(embedded_model() + "/" + TEXT, base / TEXT)
    change(base / "vae" / "config.json", block_out_channels=[8, 16, 16])
    assert "vae" in refused(check_base, str(base))


def test_pickles(base):
    path = (base / UNET).with_suffix(".bin")
    (base / UNET).unlink()
    path.write_bytes(pickle.dumps({"a": Path("x")}))
    assert f"{path.name}: a pickle that holds more than tensors" in refused(check_base, str(base))
    torch.save({"a": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:5000])
    assert path.name in refused(check_base, str(base))


def test_what_is_given_instead_of_a_folder(base, tmp_path):
    assert "one file, where a folder" in refused(check_base, str(base / UNET))
    assert f"no model_index.json; give {base}" in refused(check_base, str(base / "unet"))
    assert f"no model_index.json; give {base}" in refused(check_base, str(tmp_path))
    change(base / "unet" / "config.json", _class_name="UNet3DConditionModel")
    assert "of a UNet3DConditionModel, expected UNet2DConditionModel" in refused(check_base, str(base))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"time_cond_proj_dim": 256}, "latent consistency"),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 64}, "unCLIP"),
        ({"class_embed_type": "timestep"}, "class embeddings"),
        ({"num_class_embeds": 1000}, "class labels"),
        ({"in_channels": 9}, "inpainting"),
        ({"in_channels": 8}, "instruct-pix2pix"),
        ({"in_channels": 5}, "depth"),
        ({"in_channels": 12}, "more than a picture's latents"),
        ({"attention_type": "gated"}, "GLIGEN"),
        ({"encoder_hid_dim_type": "ip_image_proj", "encoder_hid_dim": 64}, "images beside those of text"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"cross_attention_dim": 1024}, "text of width 1024"),
        ({"center_input_sample": True}, "centres"),
        ({"in_channels": 16, "out_channels": 16}, "16 latent channels"),
    ],
)
def test_relatives_of_stable_diffusion(base, fields, words):
    change(base / "unet" / "config.json", **fields)
    assert words in refused(check_base, str(base))
    assert "unet/config.json" in refused(BaseFiles.find, str(base))


def with_scheduler(base: Path, scheduler, named: str | None = None) -> str:
    shutil.rmtree(base / "scheduler")
    scheduler.save_pretrained(base / "scheduler")
    change(base / "model_index.json", scheduler=["diffusers", named or type(scheduler).__name__])
    return refused(check_base, str(base))


@pytest.mark.parametrize(
    ("scheduler", "named", "words"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), None, "flow matching"),
        (FlowMatchEulerDiscreteScheduler(), "DDIMScheduler", "flow matching"),
        (
            UniPCMultistepScheduler(**BETAS, prediction_type="flow_prediction", use_flow_sigmas=True),
            None,
            "flow matching",
        ),
        (UniPCMultistepScheduler(**BETAS, use_flow_sigmas=True), None, "flow matching"),
        (UniPCMultistepScheduler(**BETAS, use_flow_sigmas=True), "DDIMScheduler", "flow matching"),
        (EulerDiscreteScheduler(**BETAS, prediction_type="flow_prediction"), None, "flow matching"),
        (IPNDMScheduler(), None, "prediction_type is None"),
        (diffusers.CogVideoXDDIMScheduler(**BETAS, snr_shift_scale=3.0), None, "ᾱ are not those"),
        (diffusers.ScoreSdeVeScheduler(), None, "prediction_type is None"),
        (DDIMScheduler(**BETAS), "NoSuchScheduler", "has no NoSuchScheduler"),
    ],
)
def test_noise_of_another_kind(base, scheduler, named, words):
    assert words in with_scheduler(base, scheduler, named)
    if named is None:
        for use in (path_of, lambda scheduler: Sampler.of(scheduler, 4, seed=0)):
            assert type(scheduler).__name__ in refused(use, scheduler)


def test_a_scheduler_that_says_nothing_is_not_filled_with_defaults(base):
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    assert "names no beta_schedule" in refused(check_base, str(base))


@pytest.mark.parametrize("kind", [kind.name for kind in KarrasDiffusionSchedulers])
def test_noise_of_stable_diffusion_is_the_same_from_every_scheduler(kind):
    try:
        scheduler = getattr(diffusers, kind)(**BETAS)
    except (ImportError, TypeError) as error:
        pytest.skip(str(error))
    expected = DDIMScheduler(**BETAS).alphas_cumprod
    assert torch.equal(path_of(scheduler).alphas_cumprod, expected)


def test_zero_terminal_snr_in_epsilon_is_told(capsys):
    path_of(DDIMScheduler(**BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert not capsys.readouterr().out
    path_of(EulerDiscreteScheduler(**BETAS, rescale_betas_zero_snr=True))
    assert "rescale_betas_zero_snr with prediction_type epsilon" in capsys.readouterr().out


def test_tokens_beyond_the_embedding(base):
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokenizer.add_tokens(["<cat-toy>", "<style>"])
    tokenizer.save_pretrained(base / "tokenizer")
    said = refused(check_base, str(base))
    assert "2 tokens, such as '<cat-toy>', '<style>', have no row" in said
    assert "866 tokens, but" in refused(load_tokenizer, str(base / "tokenizer"), embedded_model())


def test_a_tokenizer_without_a_length(base):
    path = base / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 77}))
    assert "model_max_length is 77, the text encoder has 32 positions" in refused(check_base, str(base))
    assert "pads to 77 tokens" in refused(load_tokenizer, str(base / "tokenizer"), embedded_model())
    for path in (base / "tokenizer").iterdir():
        path.unlink()
    assert "neither tokenizer.json nor vocab.json" in refused(check_base, str(base))


def test_other_autoencoders_and_controlnets(base, tmp_path):
    change(base / "vae" / "config.json", latent_channels=16)
    assert "they do not belong together" in refused(BaseFiles.find, embedded_model(), str(base / "vae"))
    change(base / "vae" / "config.json", latent_channels=4, in_channels=4)
    assert "4 channels, expected the 3 of RGB" in refused(check_vae, str(base / "vae"))
    new_controlnet(load_base(embedded_model()).unet, 4).save_pretrained(tmp_path / "net")
    check_controlnet(str(tmp_path / "net"))
    check_controlnet("owner/name")
    assert "expected ControlNetModel" in refused(check_controlnet, str(base / "unet"))
    (tmp_path / "net" / "diffusion_pytorch_model.safetensors").write_text(POINTER)
    assert "Git LFS pointer" in refused(check_controlnet, str(tmp_path / "net"))


def test_captions_that_are_cut_are_counted():
    tokenizer = CLIPTokenizer.from_pretrained(embedded_model(), subfolder="tokenizer")
    fits, long = "red circle", "red circle with blue background " * 10
    assert cut_captions(tokenizer, [fits, ""]) is None and cut_captions(tokenizer, []) is None
    length = len(tokenizer(long).input_ids)
    said = cut_captions(tokenizer, [fits, long, long, long + "gold"])
    assert (
        f"2 of 3 different captions are longer than the 32 tokens that the text encoder reads, by {length - 32} to"
        in said
    )
    base = BaseFiles.find(embedded_model())
    assert f"by {length - 32} tokens" in base.cut_captions([long])
