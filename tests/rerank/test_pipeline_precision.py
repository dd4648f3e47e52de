"""Published pipelines are loaded in half precision by their classes, draw, and score with their own reward."""

import math

import pytest
import torch

from diffusers_ext import embedded_model, load_pipeline
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
from diffusers_ext.rewards.named import NamedReward
from diffusers_ext.rewards.tiny import image_reward

PROMPT = "red circle with blue background"
KINDS = {"image-reward": lambda: image_reward([PROMPT], layers=1, width=32), "named": lambda: NamedReward("fill50k")}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    RewardRerankPipeline.from_pretrained(embedded_model(), reward_model=KINDS[request.param]()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_published_pipeline_draws_and_scores(saved, dtype):
    scores = []
    for kind in (load_pipeline, RewardRerankPipeline.from_pretrained, NoiseSearchPipeline.from_pretrained):
        pipe = kind(saved, dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.unet.dtype == dtype
        best = pipe(PROMPT, num_candidates=4, keep=1, seed=0, num_inference_steps=2)
        assert len(best.images) == 1 and all(map(math.isfinite, best.scores))
        scores.append(best.scores)
    assert scores[0] == scores[1]
    reward, pixels = pipe.reward_model, [best.images[0]]
    assert math.isfinite(float(reward.score([PROMPT], pixels)[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_that_is_cast_draws_and_scores(saved, dtype):
    pipe = load_pipeline(saved).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    assert all(map(math.isfinite, pipe(PROMPT, num_candidates=2, seed=0, num_inference_steps=2).scores))
