"""Reward tuning: each objective's gradient against plain autograd, the sampler against diffusers, and what official scripts get wrong."""

import copy
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from torch import nn

from diffusers_ext import LateLora, embedded_model, randomness
from diffusers_ext.diffusion.base import base_of, load_base
from diffusers_ext.diffusion.encoded import embed
from diffusers_ext.diffusion.lora import adapters_at, adapters_merged, adapters_off, add_lora, restore_lora, save_lora
from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import Coefficients, path_of, split
from diffusers_ext.diffusion.sampler import Sampler
from diffusers_ext.errors import InputError
from diffusers_ext.rewards.interface import Reward
from diffusers_ext.tuning.dpo import DPO, dpo_loss
from diffusers_ext.tuning.policy import Policy
from diffusers_ext.tuning.reward_path import RewardPath, check_gradient, in_chunks
from diffusers_ext.tuning.reward_tuning import AlignProp, DRaFT, DRaFTLV, ReFL, Weights

STEPS = 6
PROMPTS = ["red circle with blue background", "blue circle with red background", "red background"]


class Redness(Reward):
    """How much redder than blue: smooth, and within [-1, 1]."""

    def _score(self, prompts, images):
        return torch.stack([(image[0] - 0.5 * image[2].square()).mean() for image in images])


@pytest.fixture
def tuned(untrained):
    """A fresh untrained Stable Diffusion whose adapters have moved away from zero."""
    pipe = load_base(str(untrained))
    torch.manual_seed(0)
    add_lora(pipe.unet, 2)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():  # pictures that stay within [0, 1], where plain autograd needs no projection
        pipe.vae.decoder.conv_out.weight.mul_(0.2)
    return pipe


def policy_of(pipe, guidance=1.0) -> Policy:
    base = base_of(pipe)
    return Policy(base, embed([], base.encoders, torch.float32)[""], guidance)


PLAIN = Weights()


def make(kind, pipe, weights=PLAIN, guidance=1.0, eta=0.0, reward=None, batch_size=1, recompute=False, **more):
    policy = policy_of(pipe, guidance)
    sampler = Sampler.of(pipe.scheduler, STEPS, seed=1, eta=eta)
    path = RewardPath(reward or Redness(), policy.encoders, pipe.vae, batch_size)
    diffusion = Diffusion(path_of(pipe.scheduler), seed=1)
    return kind(policy, sampler, path, diffusion, 64, weights, recompute, **more)


def batch_of(pipe, count=3, epoch=0) -> dict:
    texts = base_of(pipe).encoders.embed(PROMPTS[:count])["text_embeddings"]
    return {"key": [(epoch, at) for at in range(count)], "prompt": PROMPTS[:count], "text_embeddings": texts}


def gradients(pipe, loss) -> torch.Tensor:
    parameters = [each for each in pipe.unet.parameters() if each.requires_grad]
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)])


def latents_of(objective, batch) -> torch.Tensor:
    return randomness.normal(1, "start", batch["key"], (4, 8, 8))


def plain(pipe, objective, batch, first, stop_at=None, guidance=1.0, start=None):
    """ẑ_0 of one sample after another, by diffusers' own scheduler: no gradient before step first[b]."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    empty = base_of(pipe).encoders.embed([""])["text_embeddings"]
    clean = []
    for at in range(len(batch["key"])):
        z = latents_of(objective, batch)[at : at + 1] if start is None else start[at : at + 1]
        text = batch["text_embeddings"][at : at + 1]
        begin = 0 if start is None else int(first[at])
        for number, t in list(enumerate(scheduler.timesteps))[begin:]:
            with torch.set_grad_enabled(number >= int(first[at])):
                prediction = pipe.unet(z, t, text).sample
                if guidance != 1:
                    without = pipe.unet(z, t, empty).sample
                    prediction = without + guidance * (prediction - without)
                moved = scheduler.step(prediction, t, z)
            if stop_at is not None and number == int(stop_at[at]):
                z = moved.pred_original_sample
                break
            z = moved.prev_sample
        clean.append(z)
    return torch.cat(clean)


def rewards_of(pipe, latents):
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    assert pixels.min() > 0 and pixels.max() < 1  # else the reference would need the projection
    return torch.stack([(image[0] - 0.5 * image[2].square()).mean() for image in pixels])


def same(found, expected):
    assert expected.norm() > 1e-8
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4 * float(expected.abs().max()))


# The sampler against diffusers.


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_steps_are_those_of_diffusers(kind, eta):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="scaled_linear", steps_offset=1)
    sampler = Sampler.of(scheduler, 7, seed=0, eta=eta)
    scheduler.set_timesteps(7)
    assert sampler.timesteps.tolist() == scheduler.timesteps.tolist()
    z, prediction = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for number, t in enumerate(scheduler.timesteps):
        at = torch.tensor([number])
        noise = randomness.normal(0, "ancestral", [(0, 5, number)], (4, 4, 4))
        theirs = scheduler.step(prediction, t, z, eta=eta, variance_noise=noise)
        torch.testing.assert_close(sampler.step(z, prediction, at, [(0, 5)]), theirs.prev_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sampler.clean(z, prediction, at), theirs.pred_original_sample, rtol=1e-5, atol=1e-5)


def test_the_one_step_estimate_of_refl_is_that_of_the_official_scheduler():
    """Xu et al. take DDPMScheduler.step(...).pred_original_sample."""
    for kind in ("epsilon", "v_prediction", "sample"):
        theirs = DDPMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="scaled_linear")
        theirs.set_timesteps(40)
        sampler = Sampler.of(theirs, 40, seed=0)
        z, prediction = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        for number in (30, 34, 39):
            expected = theirs.step(prediction, sampler.timesteps[number], z).pred_original_sample
            found = sampler.clean(z, prediction, torch.tensor([number]))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_every_prediction_type_gives_back_clean_latents_and_noise(kind):
    clean, noise = torch.randn(2, 3, 4, 2, 2)
    alpha = torch.tensor([0.9, 0.5, 0.1])[:, None, None, None]
    sigma = 1 - alpha if kind == "flow_prediction" else (1 - alpha**2).sqrt()
    target = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * clean,
        "sample": clean,
        "flow_prediction": noise - clean,
    }[kind]
    found = split(kind, alpha * clean + sigma * noise, target, Coefficients(alpha, sigma))
    torch.testing.assert_close(torch.stack(found), torch.stack([clean, noise]), rtol=1e-4, atol=1e-5)


def test_clipping_never_comes_on_by_default():
    """A configuration without the key, as PNDM's are, turns it on in diffusers: latents would be cut at 1."""
    assert DDPMScheduler.from_config({"beta_schedule": "scaled_linear"}).config.clip_sample
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    assert scheduler.config.clip_sample
    clean = Sampler.of(scheduler, 10, seed=0).clean(
        torch.full((1, 4, 2, 2), 5.0), torch.zeros(1, 4, 2, 2), torch.tensor([9])
    )
    assert clean.min() > 1


def test_guided_rollouts_are_the_pipelines_pictures(tuned):
    """Learning sees what users will: guidance, scheduler, adapters and all."""
    objective = make(DRaFT, tuned, guidance=3.0, steps=1)
    batch = batch_of(tuned)
    ours = objective.rewards.decode(objective.roll_out(batch, STEPS))
    theirs = StableDiffusionPipeline(**tuned.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    arguments = {"guidance_scale": 3.0, "num_inference_steps": STEPS, "output_type": "pt"}
    drawn = theirs(PROMPTS, latents=latents_of(objective, batch), **arguments).images
    torch.testing.assert_close(ours, drawn, rtol=1e-4, atol=1e-4)
    objective.policy.guidance_scale = 1.0
    assert (objective.rewards.decode(objective.roll_out(batch, STEPS)) - drawn).abs().max() > 1e-3


def test_a_sample_does_not_depend_on_its_batch(tuned):
    """Any batch size will do, the last one too; each sample stops at its own step, drawn from its key alone."""
    objective = make(ReFL, tuned, eta=1.0, window=(1, 4))
    batch = batch_of(tuned)
    together, _ = objective.generate(batch)
    for at in range(3):
        alone = {name: values[at : at + 1] for name, values in batch.items()}
        torch.testing.assert_close(objective.generate(alone)[0], together[at : at + 1], rtol=1e-4, atol=1e-5)
    drawn = randomness.integers(1, "late_step", [(epoch, at) for epoch in range(20) for at in range(3)], 1, 5)
    assert set(drawn.tolist()) == {1, 2, 3, 4}


# Each objective's gradient against plain autograd.


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_refl(tuned, guidance):
    batch = batch_of(tuned)
    objective = make(ReFL, tuned, guidance=guidance, window=(3, 5))
    parts = objective(batch)
    at = randomness.integers(1, "late_step", batch["key"], 3, 6)
    rewards = rewards_of(tuned, plain(tuned, objective, batch, at, stop_at=at, guidance=guidance))
    torch.testing.assert_close(parts["reward"], rewards.mean(), rtol=1e-4, atol=1e-6)
    same(gradients(tuned, parts["loss"]), gradients(tuned, (2.0 - rewards).relu().mean()))


@pytest.mark.parametrize("steps", [1, 3, STEPS])
@pytest.mark.parametrize("recompute", [False, True])
def test_draft_k(tuned, steps, recompute):
    batch = batch_of(tuned, 2)
    objective = make(DRaFT, tuned, Weights(margin=None), steps=steps, recompute=recompute, batch_size=2)
    rewards = rewards_of(tuned, plain(tuned, objective, batch, torch.full((2,), STEPS - steps)))
    same(gradients(tuned, objective(batch)["loss"]), gradients(tuned, -rewards.mean()))


def test_draft_lv(tuned):
    batch = batch_of(tuned, 2)
    objective = make(DRaFTLV, tuned, repeats=2)
    last = torch.full((2,), STEPS - 1)
    first = plain(tuned, objective, batch, last)
    alpha_bar = objective.sampler.alpha2[-1, 0]
    draws = [first]
    for n in range(2):
        noise = randomness.normal(1, "noised_again", [(*key, n) for key in batch["key"]], (4, 8, 8))
        noised = alpha_bar.sqrt() * first.detach() + (1 - alpha_bar).sqrt() * noise
        draws.append(plain(tuned, objective, batch, last, start=noised))
    rewards = rewards_of(tuned, torch.cat(draws))
    same(gradients(tuned, objective(batch)["loss"]), gradients(tuned, (2 - rewards).mean()))


def test_alignprop(tuned):
    batch = batch_of(tuned)
    objective = make(AlignProp, tuned, steps=4, recompute=True)
    drawn = randomness.integers(1, "truncation", batch["key"], 1, 5)
    assert len(set(drawn.tolist())) > 1
    rewards = rewards_of(tuned, plain(tuned, objective, batch, STEPS - drawn))
    same(gradients(tuned, objective(batch)["loss"]), gradients(tuned, (2 - rewards).mean()))


def test_draft_2_against_finite_differences(tuned):
    """The derivative along one direction in the adapters, in float64, by central differences."""
    batch = batch_of(tuned, 1)
    for part in (tuned.unet, tuned.vae):
        part.double()
    batch["text_embeddings"] = batch["text_embeddings"].double()
    objective = make(DRaFT, tuned, Weights(margin=None), steps=2)
    parameters = [each for each in tuned.unet.parameters() if each.requires_grad]
    start = latents_of(objective, batch).double()
    held = objective.sampler.advance(objective_predict(tuned), start, batch, 0, STEPS - 2).detach()

    def reward() -> torch.Tensor:
        clean = objective.sampler.advance(objective_predict(tuned), held, batch, STEPS - 2, STEPS)
        return in_chunks(lambda part, at: rewards_of(tuned, part), clean, 1).mean()

    slopes = torch.autograd.grad(reward(), parameters)
    directions = [torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double() for p in parameters]
    slope = sum((s * d).sum() for s, d in zip(slopes, directions))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions):
                p.add_(sign * 1e-4 * d)
            values.append(float(reward()))
            for p, d in zip(parameters, directions):
                p.sub_(sign * 1e-4 * d)
    assert math.isclose((values[0] - values[1]) / 2e-4, float(slope), rel_tol=1e-4)


def objective_predict(pipe):
    return lambda z, t, batch: pipe.unet(z, t, batch["text_embeddings"]).sample


# The terms of the loss.


def test_a_picture_above_the_margin_teaches_nothing(tuned):
    batch = batch_of(tuned)
    rewards = make(ReFL, tuned, window=(4, 4))(batch)
    below = make(ReFL, tuned, Weights(margin=-10.0), window=(4, 4))(batch)
    assert below["loss"] == 0 and gradients(tuned, below["loss"]).abs().max() == 0
    assert rewards["loss"] > 0


def test_the_drift_is_zero_at_the_base_and_its_gradient_is_plain(tuned):
    batch = batch_of(tuned)
    weights = Weights(reward=0.0, drift=1.0)
    objective = make(ReFL, tuned, weights, window=(4, 4))
    at = torch.full((3,), 4)
    with torch.no_grad():
        z = objective.roll_out(batch, at)
    t = objective.sampler.timesteps[at]
    prediction = tuned.unet(z, t, batch["text_embeddings"]).sample
    with torch.no_grad(), adapters_off(tuned.unet):
        base = tuned.unet(z, t, batch["text_embeddings"]).sample
    same(gradients(tuned, objective(batch)["loss"]), gradients(tuned, (prediction - base).square().mean()))
    with adapters_at(tuned.unet, 0.0):
        assert float(objective(batch)["drift"].detach()) < 1e-10


def test_a_unet_that_learns_whole_keeps_a_copy_of_its_base(untrained):
    pipe = load_base(str(untrained))
    pipe.unet.requires_grad_(True)
    objective = make(ReFL, pipe, Weights(drift=1.0), window=(4, 4))
    assert float(objective(batch_of(pipe))["drift"]) == 0
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1.0)
    assert float(objective(batch_of(pipe))["drift"]) > 0.1


def test_reward_and_pretraining_are_one_weighted_sum(tuned):
    """The official script has no pre-training term; a factor on all there is would mean nothing to AdamW."""
    batch = batch_of(tuned)
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch |= {"pretrain_pixel_values": pixels, "pretrain_text_embeddings": batch["text_embeddings"].flip(0)}
    found = make(DRaFT, tuned, Weights(reward=0.5, pretraining=3.0), steps=1)(batch)
    reward = make(DRaFT, tuned, steps=1)(batch)["loss"]
    diffusion = Diffusion(path_of(tuned.scheduler), seed=1)
    latents = base_of(tuned).encoders.latents({"key": batch["key"], "pixel_values": pixels}, 1)
    noisy, t, target = diffusion.diffuse(latents, batch["key"])
    denoising = (tuned.unet(noisy, t, batch["pretrain_text_embeddings"]).sample - target).square().mean()
    torch.testing.assert_close(found["pretraining"], denoising)
    same(gradients(tuned, found["loss"]), gradients(tuned, 0.5 * reward + 3 * denoising))


def test_unit_gain_makes_noisy_and_late_steps_count_alike(tuned):
    """dẑ_0/dε = σ/α falls fifteenfold within the published window; here it is divided out of the gradient alone."""
    batch = batch_of(tuned, 1)
    for number in (2, 5):
        plainly, scaled = (
            make(ReFL, tuned, Weights(margin=None), window=(number, number), unit_gain=on) for on in (False, True)
        )
        alpha_bar = plainly.sampler.alpha2[number, 0]
        gain = ((1 - alpha_bar) / alpha_bar).sqrt()
        one, other = plainly(batch), scaled(batch)
        assert one["loss"] == other["loss"]
        same(gradients(tuned, other["loss"]) * gain, gradients(tuned, one["loss"]))


def test_the_last_step_of_the_published_window_moves_the_picture_fifteen_times_less():
    """Stable Diffusion's schedule, 40 steps: why the default window leaves the very last step out."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    sampler = Sampler.of(scheduler, 40, seed=0)
    assert sampler.timesteps[[30, 39]].tolist() == [226, 1]
    alpha, sigma = sampler.coefficients(torch.tensor([30, 39]), torch.zeros(2, 4, 8, 8))
    first, last = (sigma / alpha).flatten().tolist()
    assert first == pytest.approx(0.635, abs=5e-3) and last == pytest.approx(0.041, abs=1e-3)


# DPO.


def test_dpo_against_a_pairwise_reference(tuned):
    """One pair at a time, both models as separate networks, the loss as log σ of a difference of log ratios."""
    policy = policy_of(tuned)
    diffusion = Diffusion(path_of(tuned.scheduler), seed=1)
    torch.manual_seed(0)
    batch = batch_of(tuned, 2)
    for side in ("winner", "loser"):
        batch[f"{side}_pixel_values"] = torch.rand(2, 3, 64, 64) * 2 - 1
        batch[f"{side}_time_ids"] = torch.zeros(2, 6)
    found = DPO(policy, diffusion, beta=50.0)(batch)
    losses = []
    for at in range(2):
        ratio = {}
        for side in ("winner", "loser"):
            key, pixels = batch["key"][at : at + 1], batch[f"{side}_pixel_values"][at : at + 1]
            latents = base_of(tuned).encoders.latents({"key": key, "pixel_values": pixels}, 1)
            noisy, t, noise = diffusion.diffuse(latents, key)
            text = batch["text_embeddings"][at : at + 1]
            error = (tuned.unet(noisy, t, text).sample - noise).square().mean()
            with torch.no_grad(), adapters_off(tuned.unet):
                base = (tuned.unet(noisy, t, text).sample - noise).square().mean()
            ratio[side] = -(error - base)
        losses.append(-torch.log(torch.sigmoid(50.0 / 2 * (ratio["winner"] - ratio["loser"]))))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(found["loss"], expected, rtol=1e-4, atol=1e-6)
    same(gradients(tuned, found["loss"]), gradients(tuned, expected))


def test_dpo_at_the_base_is_ln_2():
    errors = torch.tensor([[0.3, 0.1], [0.2, 0.4]])
    loss, preference = dpo_loss(errors, errors, 5000.0)
    assert math.isclose(float(loss), math.log(2), rel_tol=1e-6) and preference.abs().max() == 0
    better, _ = dpo_loss(errors - torch.tensor([[1e-4], [0.0]]), errors, 5000.0)
    assert better < loss


# From latents to rewards.


def test_chunks_change_neither_rewards_nor_gradients(tuned):
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for size in (1, 2, 5):
        path = RewardPath(Redness(), base_of(tuned).encoders, tuned.vae, size)
        given = latents.clone().requires_grad_()
        rewards = path(given, PROMPTS[:1] * 5)
        results.append((rewards, torch.autograd.grad((rewards * torch.arange(5)).sum(), given)[0]))
    for rewards, gradient in results[1:]:
        torch.testing.assert_close(rewards, results[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-4, atol=1e-8)
    given = latents.clone().requires_grad_()
    expected = torch.autograd.grad((rewards_of(tuned, given) * torch.arange(5)).sum(), given)[0]
    torch.testing.assert_close(results[0][1], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("slope", [0.01, 1e6], ids=["as of 640 pixels", "too large when scaled"])
def test_half_precision_keeps_the_gradient(slope):
    """Of a mean over a large picture each pixel's share is below float16's smallest number."""
    pipe = load_base(embedded_model())
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    reward = Through(lambda image: slope * (image[0] - 0.5 * image[2].square()).mean())
    gradients = []
    for vae in (pipe.vae, copy.deepcopy(pipe.vae).half()):
        given = latents.clone().requires_grad_()
        RewardPath(reward, base_of(pipe).encoders, vae)(given, PROMPTS[:1]).sum().backward()
        gradients.append(given.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
    torch.testing.assert_close(gradients[1].norm(), gradients[0].norm(), rtol=0.01, atol=0)


def test_a_pixel_out_of_range_can_come_back_but_not_go_further(tuned):
    from diffusers_ext.tuning.reward_path import _IntoRange

    pixels = torch.tensor([-0.5, -0.5, 0.5, 0.5, 1.5, 1.5], requires_grad=True)
    upward = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    (gradient,) = torch.autograd.grad((_IntoRange.apply(pixels) * upward).sum(), pixels)
    assert gradient.tolist() == [1, 0, 1, -1, 0, -1]


class Through(Reward):
    """A reward made of a function of the picture."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _score(self, prompts, images):
        return torch.stack([self.function(image) for image in images])


def pil_brightness(image):
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    return pil_to_tensor(to_pil_image(image.detach())).float().mean()


@pytest.mark.parametrize(
    "function, said",
    [
        (pil_brightness, "no gradient"),
        (lambda image: image.mean() * torch.nan, "not finite"),
        (lambda image: (image * 255).round().mean(), "zero"),
        (lambda image: image.mean() * 0 + 1, "zero"),
        (lambda image: (image.mean() * 0).sqrt(), "not finite"),
        (lambda image: image.mean() + 5, "--reward_margin"),
    ],
    ids=["pil", "nan", "rounds", "constant", "infinite slope", "saturated"],
)
def test_a_reward_that_cannot_teach_is_refused_before_training(tuned, function, said):
    path = RewardPath(Through(function), base_of(tuned).encoders, tuned.vae)
    with pytest.raises(InputError, match=said):
        check_gradient(path, torch.zeros(2, 4, 8, 8), PROMPTS[:2], margin=2.0)


def test_a_reward_without_gradient_is_refused_with_the_remedy(tuned):
    from diffusers_ext import load_reward

    path = RewardPath(load_reward("fill50k"), base_of(tuned).encoders, tuned.vae)
    with pytest.raises(InputError, match="--held_out_reward"):
        check_gradient(path, torch.zeros(2, 4, 8, 8), PROMPTS[:2], margin=2.0)


def test_a_reward_that_is_half_saturated_is_reported(tuned):
    path = RewardPath(Through(lambda image: image.mean() * 4), base_of(tuned).encoders, tuned.vae)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = path(latents, PROMPTS[:2])
    warning = check_gradient(path, latents, PROMPTS[:2], margin=float(scores.mean()))
    assert "--reward_margin" in warning
    assert check_gradient(path, latents, PROMPTS[:2], margin=100.0) is None


# Adapters.


def test_adapters_are_saved_as_diffusers_loads_them(tuned, untrained, tmp_path):
    save_lora(tuned.unet, tmp_path)
    fresh = load_base(str(untrained))
    fresh.load_lora_weights(tmp_path)
    z, t, text = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([500, 3]),
        base_of(tuned).encoders.embed(PROMPTS[:2])["text_embeddings"],
    )
    torch.testing.assert_close(fresh.unet(z, t, text).sample, tuned.unet(z, t, text).sample, rtol=1e-5, atol=1e-6)
    other = copy.deepcopy(tuned.unet)
    for name, parameter in other.named_parameters():
        if "lora" in name:
            nn.init.zeros_(parameter)
    restore_lora(other, tmp_path)
    assert torch.equal(other(z, t, text).sample, tuned.unet(z, t, text).sample)


def test_merged_adapters_predict_the_same_and_leave_the_base_as_it_was(tuned):
    """Rollouts run on merged weights. What is subtracted again would differ in the last bits; the base is put back instead."""
    before = {name: parameter.clone() for name, parameter in tuned.unet.named_parameters()}
    z, t, text = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([500, 3]),
        base_of(tuned).encoders.embed(PROMPTS[:2])["text_embeddings"],
    )
    with torch.no_grad():
        expected = tuned.unet(z, t, text).sample
        with adapters_merged(tuned.unet):
            merged = tuned.unet(z, t, text).sample
            inside = {name for name, each in tuned.unet.named_parameters() if not torch.equal(each, before[name])}
        with adapters_at(tuned.unet, 0.5):
            half = tuned.unet(z, t, text).sample
            with adapters_merged(tuned.unet):
                torch.testing.assert_close(tuned.unet(z, t, text).sample, half, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    assert inside and all("base_layer" in name for name in inside)
    with pytest.raises(KeyboardInterrupt), adapters_merged(tuned.unet):
        raise KeyboardInterrupt
    assert all(torch.equal(each, before[name]) for name, each in tuned.unet.named_parameters())
    with torch.no_grad():
        assert torch.equal(tuned.unet(z, t, text).sample, expected)


def test_a_compiled_unet_learns_the_same_from_few_graphs(tuned):
    """What --torch_compile compiles: the U-Net for rollouts and for gradients, once for all steps, not the loop around it."""
    objective, batch = make(ReFL, tuned, window=(2, 5)), batch_of(tuned, 1)
    expected = gradients(tuned, objective(batch)["loss"])
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    tuned.unet.compile(backend=backend)
    whole = torch.compile(objective, backend=backend)  # as accelerate does
    same(gradients(tuned, whole(batch)["loss"]), expected)
    for epoch in (1, 2, 3):  # which stop at other steps
        whole(batch_of(tuned, 1, epoch))
    assert len(graphs) == 2
    del tuned.unet._compiled_call_impl
    torch._dynamo.reset()


def test_half_precision_is_not_merged(tuned):
    """W + ΔW of bfloat16 is W again where ΔW is small: what rolls out would be the base."""
    tuned.unet.to(torch.bfloat16)
    before = [each.clone() for each in tuned.unet.parameters()]
    with adapters_merged(tuned.unet):
        assert all(torch.equal(one, two) for one, two in zip(tuned.unet.parameters(), before))


def test_late_adapters_leave_the_first_steps_to_the_base(tuned):
    """Step by step: whatever the network is called with, early calls are the base's and late ones the adapters'."""
    seen = []
    hook = tuned.unet.register_forward_pre_hook(lambda *_: seen.append(adapters_active(tuned.unet)))
    tuned.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    with LateLora(tuned, 0.5) as late:
        for _ in range(2):
            tuned(PROMPTS[0], callback_on_step_end=late, **arguments)
    assert seen == [False, False, True, True] * 2 and adapters_active(tuned.unet)
    seen.clear()
    with LateLora(tuned, 0.0) as late:
        tuned(PROMPTS[0], callback_on_step_end=late, **arguments)
    assert seen == [True] * 4
    seen.clear()
    with LateLora(tuned, 1.0) as late:
        tuned(PROMPTS[0], callback_on_step_end=late, **arguments)
    assert seen == [False] * 4 and adapters_active(tuned.unet)
    hook.remove()
    with pytest.raises(ValueError, match="share"):
        LateLora(tuned, 7)


def adapters_active(unet) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    states = {not layer.disable_adapters for layer in unet.modules() if isinstance(layer, BaseTunerLayer)}
    assert len(states) == 1
    return states.pop()


# SDXL.


def test_sdxl_rollouts_are_the_pipelines_pictures(untrained_xl):
    """Another scheduler (Euler), pooled text, time ids, and zeros to guide away from."""
    pipe = load_base(str(untrained_xl))
    torch.manual_seed(0)
    add_lora(pipe.unet, 2)
    encoders = base_of(pipe).encoders
    empty = {name: torch.zeros_like(value[0]) for name, value in encoders.embed([""]).items()}
    assert pipe.config.force_zeros_for_empty_prompt
    policy = Policy(base_of(pipe), empty, 3.0)
    sampler = Sampler.of(pipe.scheduler, 4, seed=1)
    batch = {"key": [(0, 0), (0, 1)], **encoders.embed(PROMPTS[:2])}
    batch["time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    start = sampler.noise("start", batch["key"], torch.empty(2, 4, 8, 8))
    with torch.no_grad():
        ours = RewardPath(None, encoders, pipe.vae).decode(sampler.advance(policy, start, batch, 0, 4))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"height": 64, "width": 64, "guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "pt"}
    theirs = pipe(PROMPTS[:2], latents=start, **arguments).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_reward_of_ones_own_by_its_module():
    from PIL import Image

    from diffusers_ext import load_reward

    reward = load_reward("test_reward_tuning:redder")
    assert reward.score("any", [Image.new("RGB", (4, 4), "red"), torch.zeros(3, 4, 4)]).tolist() == [1, 0]
    with pytest.raises(InputError, match="PYTHONPATH"):
        load_reward("test_reward_tuning:nowhere")


def redder(prompts, images):
    return torch.stack([image[0].mean() - image[2].mean() for image in images])


def test_circles_are_likened_to_their_disc():
    import numpy as np

    from diffusers_ext.toy.circles import draw_target, scene
    from diffusers_ext.toy.measures import circle_likeness

    square, flat = np.zeros((2, 64, 64, 3), np.uint8)
    square[20:44, 20:44] = 255
    circle, box, nothing = circle_likeness([draw_target(scene(0), 64), square, flat])
    assert circle > 0.95 and 0.7 < box < 0.9 and nothing == 0
