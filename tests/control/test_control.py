"""A ControlNet before and during its first steps."""

import copy
import hashlib

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from diffusers_ext.control.hint import init_hint, new_controlnet, signal_ratio, transfer
from diffusers_ext.control.objective import ControlObjective, Variant
from diffusers_ext.data.batches import collate
from diffusers_ext.diffusion.base import Base, base_of, family_of
from diffusers_ext.errors import InputError
from diffusers_ext.toy import circles as fill50k

METHODS = ("default", "kaiming", "data")


def test_the_hint_network_halves_as_often_as_the_autoencoder(pipe):
    condition = torch.rand(2, 3, 64, 64)
    for factor, channels in ((2, (16, 32)), (4, (16, 32, 96)), (8, (16, 32, 96, 256)), (16, (16, 32, 96, 256, 256))):
        controlnet = new_controlnet(pipe.unet, factor)
        assert controlnet.config.conditioning_embedding_out_channels == channels
        assert controlnet.controlnet_cond_embedding(condition).shape[-1] == 64 // factor


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_0_is_the_base_bit_for_bit(pipe, pairs, method, dtype):
    unet = copy.deepcopy(pipe.unet).to(dtype)
    controlnet = new_controlnet(unet, 8)
    init_hint(controlnet, method, pairs.sample_conditions(16), seed=0)
    controlnet.to(dtype)
    torch.manual_seed(0)
    noisy, text = (
        torch.randn(2, 4, 8, 8, dtype=dtype),
        torch.randn(2, 32, pipe.unet.config.cross_attention_dim, dtype=dtype),
    )
    with torch.no_grad():
        down, middle = controlnet(
            noisy, 500, text, controlnet_cond=pairs.sample_conditions(2).to(dtype), return_dict=False
        )
        assert all(not residual.any() for residual in (*down, middle))
        controlled = unet(noisy, 500, text, down_block_additional_residuals=down, mid_block_additional_residual=middle)
        assert torch.equal(controlled.sample, unet(noisy, 500, text).sample)


@pytest.mark.parametrize("method", METHODS)
def test_the_untrained_pipeline_draws_the_bases_picture(pipe, pairs, method):
    controlnet = new_controlnet(pipe.unet, 8)
    init_hint(controlnet, method, pairs.sample_conditions(16), seed=0)
    parts = {**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)}
    controlled = StableDiffusionControlNetPipeline(**parts, controlnet=controlnet, requires_safety_checker=False)
    plain = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    condition = Image.fromarray(fill50k.draw_condition(fill50k.scene(0), 64))
    for each in (controlled, plain):
        each.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 10, "output_type": "pt", "height": 64, "width": 64}
    ours = controlled("red circle", image=condition, generator=torch.Generator().manual_seed(0), **arguments).images
    base = plain("red circle", generator=torch.Generator().manual_seed(0), **arguments).images
    assert torch.equal(ours, base)


def test_the_initialised_trunk_carries_its_condition(pipe, pairs):
    """PyTorch's default loses the signal among the biases; at real size it is less than 1 % of what arrives."""
    conditions = pairs.sample_conditions(48)
    ratios = {}
    for method in METHODS:
        torch.manual_seed(0)
        ratios[method] = init_hint(new_controlnet(pipe.unet, 8), method, conditions, seed=0)
    assert ratios["default"] < 0.01 and min(ratios["kaiming"], ratios["data"]) > 0.3


def test_data_init_gives_unit_deviation_and_is_deterministic(pipe, pairs):
    conditions = pairs.sample_conditions(48)
    nets = [new_controlnet(pipe.unet, 8) for _ in range(2)]
    for net in nets:
        init_hint(net, "data", conditions, seed=3)
    hints = [net.controlnet_cond_embedding for net in nets]
    for first, second in zip(hints[0].parameters(), hints[1].parameters()):
        assert torch.equal(first, second)
    x = conditions
    with torch.no_grad():
        for convolution in (hints[0].conv_in, *hints[0].blocks):
            x = convolution(x)
            assert (x - x.mean(dim=(0, 2, 3), keepdim=True)).std() == pytest.approx(1, abs=1e-3)
            assert not convolution.bias.any()
            x = torch.nn.functional.silu(x)
    assert not hints[0].conv_out.weight.any()
    assert signal_ratio(nets[0], conditions) > 0.3


def test_blank_conditions_are_refused(pipe):
    with pytest.raises(InputError, match="blank or all alike"):
        init_hint(new_controlnet(pipe.unet, 8), "data", torch.zeros(4, 3, 64, 64), seed=0)


def test_gradients_reach_zero_convolutions_first_and_nothing_frozen(objective, pairs):
    def digest():
        frozen = list(objective.base.parameters())
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in frozen)).hexdigest()

    before, reached = digest(), []
    parameters = dict(objective.controlnet.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    batch = collate([pairs[0, index] for index in range(2)])
    for _ in range(3):
        objective(batch)["loss"].backward()
        reached.append({name for name, p in parameters.items() if p.grad is not None and p.grad.any()})
        optimizer.step()
        optimizer.zero_grad()
    zero = {name for name in parameters if name.startswith(("controlnet_down_blocks", "controlnet_mid_block"))}
    assert reached[0] == zero
    trunk = {name for name in parameters if name.startswith("controlnet_cond_embedding") and "conv_out" not in name}
    assert reached[1] == set(parameters) - trunk
    assert reached[2] == set(parameters)
    for _ in range(47):  # 50 steps in all
        objective(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.grad is None for p in objective.base.parameters())
    assert digest() == before


def test_the_loss_is_the_papers(objective, pairs, pipe):
    """Written out with diffusers' own scheduler arithmetic, one sample at a time."""
    init_hint(objective.controlnet, "data", pairs.sample_conditions(16), seed=0)
    torch.nn.init.normal_(objective.controlnet.controlnet_mid_block.weight, std=0.1)
    samples = [pairs[2, index] for index in range(3)]
    expected = []
    for sample in samples:
        noisy, timestep, noise = objective.diffusion.diffuse(latents_of(objective, sample), [sample["key"]])
        text = objective.base.encoders.embed([sample["text"]])["text_embeddings"]
        condition = sample["conditioning_pixel_values"][None]
        down, middle = objective.controlnet(noisy, timestep, text, controlnet_cond=condition, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        expected.append((pipe.unet(noisy, timestep, text, **residuals).sample - noise).square().mean())
    assert objective(collate(samples))["loss"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def latents_of(objective, sample):
    """Encode with diffusers' own posterior.sample, given the same normal numbers."""
    from diffusers_ext import randomness

    posterior = objective.base.encoders.vae.encode(sample["pixel_values"][None]).latent_dist
    noise = randomness.normal(0, "posterior", [sample["key"]], posterior.mean.shape[1:])
    return (posterior.mean + posterior.std * noise) * objective.base.encoders.vae.config.scaling_factor


def learning(objective) -> set[str]:
    return {name for name, parameter in objective.named_parameters() if parameter.requires_grad}


def test_only_mid_control_leaves_the_other_connections_zero(pipe, pairs, objective):
    only_mid = ControlObjective(
        objective.controlnet, base_of(pipe), objective.diffusion, Variant(only_mid_control=True)
    )
    assert not any("controlnet_down_blocks" in name for name in learning(only_mid))
    optimizer = torch.optim.AdamW([p for p in only_mid.parameters() if p.requires_grad], lr=1e-2)
    batch = collate([pairs[0, index] for index in range(2)])
    for _ in range(3):
        only_mid(batch)["loss"].backward()
        optimizer.step()
    latents, conditioning = only_mid.encode(batch)
    condition = batch["conditioning_pixel_values"]
    down, middle = only_mid.controlnet(latents, 500, conditioning.text, controlnet_cond=condition, return_dict=False)
    assert middle.any() and not any(residual.any() for residual in down)


def test_unlock_decoder_adds_the_decoder_and_nothing_else(pipe, objective):
    unet = copy.deepcopy(pipe.unet)
    base = Base(family_of(unet), unet, objective.base.encoders)
    unlocked = ControlObjective(objective.controlnet, base, objective.diffusion, Variant(unlock_decoder=True))
    added = learning(unlocked) - learning(objective)
    decoder = {
        f"base.network.{name}"
        for name, _ in unet.named_parameters()
        if name.startswith(("up_blocks", "conv_norm_out", "conv_out"))
    }
    assert added == decoder and set(unlocked.trainable) == {"controlnet", "unet"}


def test_transfer_moves_a_copy_with_its_base(pipe):
    """A fresh copy of the old base becomes the fresh copy of the new one; what was learned on top stays on top."""
    other = copy.deepcopy(pipe.unet)
    torch.manual_seed(1)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    controlnet = new_controlnet(pipe.unet, 8)
    controlnet.controlnet_mid_block.bias.data += 0.5
    transfer(controlnet, pipe.unet, other)
    moved, expected = controlnet.state_dict(), other.state_dict()
    copied = [name for name in moved if name in expected]
    assert len(copied) > 50
    for name in copied:
        torch.testing.assert_close(moved[name], expected[name])
    assert (moved["controlnet_mid_block.bias"] == 0.5).all()
