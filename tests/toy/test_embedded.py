"""The model that ships with the package: small, loadable by anything, and right about colours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

import diffusers_ext
from diffusers_ext.diffusion.base import check_base
from diffusers_ext.diffusion.bases.encoders import vae_scale_factor
from diffusers_ext.diffusion.draw import draw
from diffusers_ext.toy import circles as fill50k
from diffusers_ext.toy.measures import colour_error, condition_following

FOLDER = Path(diffusers_ext.embedded_model())


@pytest.fixture(scope="module")
def pipe():
    return DiffusionPipeline.from_pretrained(FOLDER)


def test_it_is_a_small_standard_folder(pipe):
    check_base(str(FOLDER))
    assert type(pipe) is StableDiffusionPipeline
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) < 12e6
    assert {part.dtype for part in (pipe.vae, pipe.unet, pipe.text_encoder)} == {torch.float32}
    assert not [path for path in FOLDER.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert vae_scale_factor(pipe.vae.config) == 4 and pipe.unet.config.sample_size == 16


def test_its_card_says_how_it_was_made():
    card = (FOLDER / "README.md").read_text()
    for part in ("train_tiny_text_to_image.py", "seed 0", "CIEDE2000", "samples/step-", "license: apache-2.0"):
        assert part in card
    picture = card.split("](samples/")[1].split(")")[0]
    assert (FOLDER / "samples" / picture).exists()


def test_colours_are_right_on_held_out_pairs(pipe):
    prompts = [fill50k.scene(index, split="test").prompt for index in range(64)]
    images = draw(pipe, prompts, num_inference_steps=20, guidance_scale=2.0)
    circle, background = colour_error(images, prompts)
    assert np.median(circle) < 12 and np.median(background) < 12


def test_the_autoencoder_is_no_ceiling(pipe):
    """Pictures that only pass through the autoencoder keep their circle and their colours."""
    scenes = [fill50k.scene(index, split="test") for index in range(32)]
    pixels = (
        torch.stack([torch.from_numpy(fill50k.draw_target(scene, 64)) for scene in scenes]).permute(0, 3, 1, 2) / 127.5
        - 1
    )
    with torch.inference_mode():
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample / 2 + 0.5
    found = condition_following(
        decoded, [fill50k.draw_condition(scene, 64) for scene in scenes], [s.prompt for s in scenes]
    )
    assert found.summary()["iou"] > 0.9
    assert max(found.summary()["circle_error"], found.summary()["background_error"]) < 5


def test_any_prompt_has_tokens(pipe):
    ids = pipe.tokenizer(["dark red circle", "Ünïcode 你好 !?", "", "word " * 5000], truncation=True).input_ids
    assert [len(each) for each in ids[2:]] == [2, pipe.tokenizer.model_max_length]
    unknown = pipe.tokenizer.eos_token_id  # CLIP's unknown token is the end of text: it must not occur inside
    assert all(unknown not in each[:-1] for each in ids)


def test_the_schedule_ends_in_pure_noise(pipe):
    config = json.loads((FOLDER / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction" and config["rescale_betas_zero_snr"]
    assert pipe.scheduler.alphas_cumprod[-1] < 1e-6
