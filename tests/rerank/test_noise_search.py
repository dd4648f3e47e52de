"""Noise search: its geometry and density, its budget, determinism, the plain pipeline's pixels, and that it gains."""

import logging
import math

import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusers_ext import embedded_model, load_reward
from diffusers_ext.errors import InputError
from diffusers_ext.rerank import noise_search
from diffusers_ext.rerank.noise import first_noise, log_density_of_norm, neighbours
from diffusers_ext.rerank.noise_search import NoiseSearch
from diffusers_ext.rewards.interface import Reward

PROMPT = "teal circle with salmon background"
DRAWING = {"num_inference_steps": 2, "guidance_scale": 2.0}


class Brightness(Reward):
    """The mean of the pixels."""

    def _score(self, prompts, images):
        return torch.stack([image.mean() for image in images])


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def search(pipe, reward=None, **arguments):
    return NoiseSearch(pipe, reward or Brightness())(PROMPT, **{"output_type": "pt", **DRAWING, **arguments})


# ---------------------------------------------------------------- equations


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 1.9])
def test_neighbours_lie_on_the_sphere_at_their_distance(radius):
    pivot = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = neighbours(pivot, 5, radius, seed=1, number=2)
    assert torch.allclose(found.flatten(1).norm(dim=1), pivot.norm().expand(5), rtol=1e-5)
    assert torch.allclose((found - pivot).flatten(1).norm(dim=1), radius * pivot.norm().expand(5), rtol=1e-4)
    assert torch.equal(found[:3], neighbours(pivot, 3, radius, seed=1, number=2))  # each has a key of its own
    assert not torch.equal(found, neighbours(pivot, 5, radius, seed=1, number=3))


def test_the_density_is_that_of_the_norm_of_normal_numbers():
    """Up to its constant: that of the χ distribution, as scipy has it."""
    from scipy.stats import chi

    direction = torch.nn.functional.normalize(torch.randn(256, dtype=torch.double), dim=0)
    norms = [10.0, 15.9, 20.0]
    ours = [log_density_of_norm(direction * norm).item() for norm in norms]
    assert [value - ours[0] for value in ours] == pytest.approx(
        [chi(256).logpdf(n) - chi(256).logpdf(10) for n in norms]
    )


def test_first_noise_is_what_the_pipeline_draws(pipe):
    generator = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    expected = pipe(PROMPT, num_images_per_prompt=2, generator=generator, output_type="pt", **DRAWING).images
    noise = first_noise(pipe, seed=7, count=2)
    drawn = pipe(PROMPT, num_images_per_prompt=2, latents=noise, output_type="pt", **DRAWING).images
    assert torch.equal(drawn, expected)
    assert first_noise(pipe, 0, 1, height=32, width=128).shape == (1, 4, 8, 32)


# ---------------------------------------------------------------- searches


@pytest.mark.parametrize("method", ["local", "gradient"])
def test_a_search_gains_and_its_noise_draws_the_pictures_again(pipe, method):
    found = search(pipe, method=method, num_candidates=13, starts=2, chunk_size=2, keep=2, seed=3, radius=1.0)
    start = found.history[0]["score"]
    assert found.scores == sorted(found.scores, reverse=True) and found.scores[0] > start
    assert [row["score"] for row in found.history] == sorted(row["score"] for row in found.history)
    again = pipe(PROMPT, num_images_per_prompt=2, latents=found.latents, output_type="pt", **DRAWING).images
    assert torch.allclose(again, found.images, atol=2e-3)
    assert [image.mean().item() for image in found.images] == pytest.approx(found.scores[:2], abs=1e-5)
    assert set(found.seeds) <= {3, 4}


def test_the_budget_is_counted_in_network_evaluations(pipe):
    """Guidance sends every sample through twice; a gradient step is a forward pass, another, and a backward one of two."""
    step = {"num_inference_steps": 1}
    assert search(pipe, method="local", num_candidates=7, starts=3, **step).evaluations == 7 * 2
    gradient = search(pipe, method="gradient", num_candidates=12, starts=3, **step)
    assert gradient.evaluations == (3 + 2 * 4 + 1) * 2
    assert len(gradient.scores) == 3 + 1 + 1  # the first of two gradient steps is at a picture that is known
    only_first = search(pipe, method="gradient", num_candidates=4, starts=3, **step)
    assert only_first.evaluations == 3 * 2 and len(only_first.history) == 1


@pytest.mark.parametrize("method", ["local", "gradient"])
def test_same_seed_same_search(pipe, method):
    arguments = {"method": method, "num_candidates": 9, "starts": 2, "seed": 5}
    arguments |= {"num_inference_steps": 1}
    first, second = search(pipe, **arguments), search(pipe, **arguments)
    assert first.scores == second.scores and torch.equal(first.latents, second.latents)
    assert first.scores != search(pipe, **arguments | {"seed": 6}).scores


def test_the_pixels_of_a_gradient_step_are_the_pipelines(pipe):
    """Its loop is the pipeline's own: the first candidate after the start is what the plain pipeline draws from that noise."""
    found = search(pipe, method="gradient", num_candidates=10, starts=1, keep=4)
    plain = pipe(PROMPT, num_images_per_prompt=len(found.images), latents=found.latents, output_type="pt", **DRAWING)
    assert torch.allclose(plain.images, found.images, atol=2e-3)


def test_nothing_stays_behind(pipe):
    before = {name: dict(vars(part)) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    search(pipe, method="gradient", num_candidates=6, starts=1)
    for name, attributes in before.items():
        assert vars(getattr(pipe, name)).keys() == attributes.keys()
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())
    assert pipe._progress_bar_config == {"disable": True}


def test_the_held_out_reward_is_told_and_chooses_nothing(pipe):
    class Darkness(Brightness):
        def _score(self, prompts, images):
            return -super()._score(prompts, images)

    watched = search(pipe, num_candidates=4, starts=2, held_out=Darkness())
    assert watched.held_out == pytest.approx([-score for score in watched.scores])
    assert watched.history[-1]["held_out"] == watched.held_out[0]
    alone = search(pipe, num_candidates=4, starts=2)
    assert alone.scores == watched.scores and all(map(math.isnan, alone.held_out))


def test_one_reward_and_many_candidates_is_warned_of_once(pipe, caplog):
    noise_search._warn_of_one_reward.cache_clear()
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    for held_out in (Brightness(), None, None):
        search(pipe, num_candidates=16, starts=16, num_inference_steps=1, held_out=held_out)
    logger.removeHandler(caplog.handler)
    assert sum("a single reward overlooks" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "random"}, "choose local or gradient"),
        ({"num_candidates": 2, "starts": 3}, "starts 3: 1 to num_candidates, 2"),
        ({"radius": 2.0}, "radius 2.0"),
        ({"latents": torch.zeros(1)}, "latents: a search sets that itself"),
        ({"reward": load_reward("fill50k"), "method": "gradient"}, "ColourReward has no gradient"),
    ],
)
def test_what_cannot_be_searched(pipe, arguments, message):
    with pytest.raises(InputError, match=message):
        search(pipe, **arguments)


def test_one_prompt_at_a_time(pipe):
    with pytest.raises(InputError, match="one prompt"):
        NoiseSearch(pipe, Brightness())([PROMPT], **DRAWING)


@pytest.mark.parametrize("method", ["local", "gradient"])
def test_around_a_stable_diffusion_xl(untrained_xl, method):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(untrained_xl)
    pipe.set_progress_bar_config(disable=True)
    found = search(pipe, method=method, num_candidates=11, starts=2, radius=1.0, height=64, width=64)
    assert found.history[-1]["score"] > found.history[0]["score"]
    again = pipe(PROMPT, latents=found.latents, height=64, width=64, output_type="pt", **DRAWING).images
    assert torch.allclose(again, found.images, atol=2e-3)
