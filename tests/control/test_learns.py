"""The embedded model's ControlNet begins to follow within some thirty steps, and the gap says so; with other pictures' conditions, never."""

import pytest
import torch

import diffusers_ext
from diffusers_ext.control.gap import ConditionGap, snap
from diffusers_ext.control.hint import init_hint, new_controlnet
from diffusers_ext.control.objective import ControlObjective
from diffusers_ext.data.batches import collate
from diffusers_ext.diffusion.base import base_of, load_base
from diffusers_ext.diffusion.encoded import Encoded, encode_in_memory
from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import path_of
from diffusers_ext.randomness import MicroBatches, Share
from diffusers_ext.toy.circles import Fill50k

TRAIN, HELD_OUT, STEPS, EVERY = 112, 16, 28, 7


def gaps(shuffle: bool) -> list[dict]:
    """Train on circles, with their own conditions or another picture's, and return what is measured along the way."""
    pipe = load_base(diffusers_ext.embedded_model())
    base = base_of(pipe)
    drawn = Fill50k(TRAIN + HELD_OUT, 64)
    conditions = torch.stack([drawn[0, index]["conditioning_pixel_values"] for index in range(len(drawn))])
    if shuffle:
        conditions = conditions.roll(1, dims=0)
    encoded = Encoded(drawn, encode_in_memory(drawn, base.encoders))
    sample = lambda key: {**encoded[key], "conditioning_pixel_values": conditions[key[1]]}  # noqa: E731
    torch.manual_seed(0)
    controlnet = new_controlnet(pipe.unet, 4)
    init_hint(controlnet, "data", conditions[:64], seed=0)
    objective = ControlObjective(controlnet, base, Diffusion(path_of(pipe.scheduler), seed=0))
    gap = ConditionGap(objective, collate([sample((0, TRAIN + index)) for index in range(HELD_OUT)]), 8)
    optimizer, rows = torch.optim.AdamW(controlnet.parameters(), lr=1e-3, fused=True), []
    for step, keys in enumerate(MicroBatches(TRAIN, 0, Share(4, STEPS)), start=1):
        objective(collate([sample(key) for key in keys]))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            with torch.inference_mode():
                rows.append({"step": step, **gap()})
    return rows


@pytest.fixture(scope="module")
def following() -> list[dict]:
    return gaps(shuffle=False)


def test_the_gap_rises_as_soon_as_it_follows(following):
    """1 is five times what counts as following; the held-out loss falls with it."""
    assert following[-1]["gap"] > 1 and following[-1]["held_out_loss"] < following[0]["held_out_loss"]


def test_the_detector_names_the_first_measurement_of_following(following):
    first = next(row["step"] for row in following if row["gap"] >= 0.2)
    assert snap(following) == first <= STEPS


def test_with_other_pictures_conditions_there_is_no_gap():
    shuffled = gaps(shuffle=True)
    assert abs(shuffled[-1]["gap"]) < 0.01 and snap(shuffled) is None
