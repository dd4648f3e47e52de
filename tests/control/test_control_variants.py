"""Variants of a ControlNet: what learns, what stays, what is saved."""

import copy
import hashlib
import itertools

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

from diffusers_ext.control.blocks import behind, check_unused, front
from diffusers_ext.control.hint import init_hint, new_controlnet
from diffusers_ext.control.lora import add_lora, load_control_lora, merged, restore_lora, save_lora
from diffusers_ext.control.objective import ControlObjective, Variant, save
from diffusers_ext.data.batches import collate
from diffusers_ext.diffusion.base import Base, base_of, load_base
from diffusers_ext.diffusion.conditioning import Conditioning
from diffusers_ext.errors import InputError

VARIANTS = {
    "full": {},
    "lora": {"rank": 4},
    "lora-mid-only": {"rank": 4, "only_mid_control": True},
    "lora-unlocked": {"rank": 4, "unlock_decoder": True},
    "first-1": {"blocks": 1},
    "first-2": {"blocks": 2},
    "first-1-unlocked": {"blocks": 1, "unlock_decoder": True},
    "mid-only": {"only_mid_control": True},
    "unlocked": {"unlock_decoder": True},
}
CONNECTIONS = ("controlnet_down_blocks", "controlnet_mid_block")


def make(objective, variant: str, hint: str | None = None, conditions=None) -> ControlObjective:
    """The objective of a variant, on a U-Net of its own."""
    switches, unet = dict(VARIANTS[variant]), copy.deepcopy(objective.base.network)
    torch.manual_seed(0)
    controlnet = new_controlnet(unet, 8, blocks=switches.get("blocks"))
    if hint:
        init_hint(controlnet, hint, conditions, seed=0)
    rank = switches.pop("rank", None)
    if rank:
        add_lora(controlnet, unet, rank)
    base = Base(objective.base.family, unet, objective.base.encoders)
    return ControlObjective(controlnet, base, objective.diffusion, Variant(**switches))


def train(objective, batch, steps: int, rate: float = 1e-2) -> list[set[str]]:
    """Train, and return the names of the tensors that each step's gradient reached."""
    named, reached = dict(objective.named_parameters()), []
    optimizer = torch.optim.AdamW([p for p in named.values() if p.requires_grad], lr=rate)
    for _ in range(steps):
        objective(batch)["loss"].backward()
        reached.append({name for name, p in named.items() if p.grad is not None and p.grad.any()})
        optimizer.step()
        optimizer.zero_grad()
    return reached


def digest(tensors) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


@pytest.fixture(scope="module")
def batch(pairs, pipe):
    """Two samples, encoded."""
    encoders = base_of(pipe).encoders
    samples = collate([pairs[0, index] for index in range(2)])
    with torch.no_grad():
        encoded = {"moments": encoders.moments(samples["pixel_values"]), **encoders.embed(samples["text"])}
    return {**samples, **encoded}


@pytest.mark.parametrize(("variant", "hint"), itertools.product(VARIANTS, ("default", "kaiming", "data")))
def test_step_0_is_the_base_bit_for_bit(objective, pairs, batch, variant, hint):
    fresh = make(objective, variant, hint, pairs.sample_conditions(16))
    noisy, text = torch.randn(2, 4, 8, 8), fresh.base.encoders.embed(batch["text"])["text_embeddings"]
    arguments = (noisy, torch.tensor([500, 3]), text)
    with torch.no_grad():
        down, middle = fresh.controlnet(
            *arguments, controlnet_cond=batch["conditioning_pixel_values"], return_dict=False
        )
        assert len(down) == 4 and not any(residual.any() for residual in (*down, middle))
        base = objective.base.network(*arguments).sample
        words = Conditioning(text)
        assert torch.equal(fresh.predict(*arguments[:2], words, batch["conditioning_pixel_values"]), base)


def expected(objective, variant: str) -> list[set[str]]:
    """The tensors that gradients reach at steps 1, 2 and 3: zero convolutions, then what feeds them, then the rest."""
    switches, names = VARIANTS[variant], [name for name, _ in objective.named_parameters()]
    control = [name for name in names if name.startswith("controlnet.")]
    zero = {name for name in control if name.split(".")[1] in CONNECTIONS}
    hint = {name for name in control if name.split(".")[1] == "controlnet_cond_embedding"}
    if switches.get("only_mid_control"):
        zero = {name for name in zero if "controlnet_mid_block" in name}
    decoder = {
        name
        for name in names
        if name.removeprefix("base.network.").startswith(("up_blocks", "conv_norm_out", "conv_out"))
    }
    if "blocks" in switches:
        unused = {id(parameter) for parameter in behind(objective.controlnet, switches["blocks"]).parameters()}
        named = dict(objective.named_parameters())
        zero = {name for name in zero if id(named[name]) not in unused}
        copied = {name for name in control if name not in zero | hint and id(named[name]) not in unused}
        copied -= {name for name in copied if name.split(".")[1] in CONNECTIONS}
    else:
        copied = {name for name in control if name.split(".")[1] not in (*CONNECTIONS, "controlnet_cond_embedding")}
    late = {name for name in hint if "conv_out" not in name}
    if "rank" in switches:
        copied = {name for name in copied if ".lora_" in name}
        late |= {name for name in copied if ".lora_A." in name}
    unlocked = decoder if switches.get("unlock_decoder") else set()
    everything = zero | hint | copied | unlocked
    return [zero | unlocked, everything - late, everything]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_what_learns_and_nothing_else(objective, batch, variant):
    trained = make(objective, variant)
    frozen = [parameter for parameter in trained.parameters() if not parameter.requires_grad]
    before = digest(frozen)
    reached = train(trained, batch, 3)
    assert reached == expected(trained, variant)
    assert reached[2] == {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    train(trained, batch, 17)
    assert digest(frozen) == before and all(parameter.grad is None for parameter in frozen)
    assert trained.controlnet.controlnet_mid_block.weight.any() == ("blocks" not in VARIANTS[variant])


# LoRA


def test_a_lora_controlnet_rebuilds_from_its_small_part(objective, batch, tmp_path):
    trained = make(objective, "lora")
    train(trained, batch, 4)
    save(trained, tmp_path)
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert names == {"config.json", "pytorch_lora_weights.safetensors"}

    arguments = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([500, 3]),
        trained.base.encoders.embed(batch["text"])["text_embeddings"],
    )
    condition = batch["conditioning_pixel_values"]
    ours = load_control_lora(tmp_path / "lora", trained.base.network)
    alone = ControlNetModel.from_unet(trained.base.network)  # diffusers' own loader, unmerged
    alone.load_lora_adapter(tmp_path / "lora", prefix=None, use_safetensors=True)
    whole = ControlNetModel.from_pretrained(tmp_path)
    with torch.no_grad():
        run = lambda net: net(*arguments, controlnet_cond=condition, return_dict=False)  # noqa: E731
        wanted, found = run(trained.controlnet), {name: run(net) for name, net in zip("oaw", (ours, alone, whole))}
    assert wanted[1].abs().max() > 1e-3
    for first, ours_, alone_, whole_ in zip(
        *((*down, middle) for down, middle in (wanted, found["o"], found["a"], found["w"]))
    ):
        assert torch.equal(alone_, first) and torch.equal(ours_, whole_)
        torch.testing.assert_close(whole_, first, atol=1e-5, rtol=1e-5)


def test_the_merged_controlnet_is_a_plain_one(objective, batch, pipe, tmp_path):
    trained = make(objective, "lora")
    train(trained, batch, 3)
    plain, whole = new_controlnet(trained.base.network, 8), merged(trained.controlnet)
    assert whole.state_dict().keys() == plain.state_dict().keys() and whole.config == plain.config
    adapted = trained.controlnet.mid_block.resnets[0].conv1
    product = adapted.lora_B["default"].weight.flatten(1) @ adapted.lora_A["default"].weight.flatten(1)
    change = whole.mid_block.resnets[0].conv1.weight - trained.base.network.mid_block.resnets[0].conv1.weight
    torch.testing.assert_close(change.flatten(), product.detach().flatten(), atol=1e-6, rtol=1e-3)
    drawn = StableDiffusionControlNetPipeline(**pipe.components, controlnet=whole, requires_safety_checker=False)
    drawn.set_progress_bar_config(disable=True)
    condition = batch["conditioning_pixel_values"][:1]
    images = drawn("red circle", image=condition, num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 64, 64) and images.isfinite().all()


def test_the_adapted_copy_is_the_bases_own_memory(objective):
    """The frozen half of a LoRA-ControlNet costs nothing, also in half precision, and the adapters stay float32."""
    unet = copy.deepcopy(objective.base.network).to(torch.bfloat16)
    controlnet = new_controlnet(unet, 8)
    add_lora(controlnet, unet, rank=4)
    theirs = {parameter.data_ptr() for parameter in unet.parameters()}
    frozen = [parameter for parameter in controlnet.parameters() if not parameter.requires_grad]
    assert len(frozen) > 50 and all(parameter.data_ptr() in theirs for parameter in frozen)
    learned = [parameter for parameter in controlnet.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in learned} == {torch.float32}
    assert merged(controlnet).dtype == torch.float32


def test_a_small_part_is_restored_in_place_and_strictly(objective, batch, tmp_path):
    trained, again = make(objective, "lora"), make(objective, "lora")
    train(trained, batch, 2)
    save_lora(trained.controlnet, tmp_path)
    restore_lora(again.controlnet, tmp_path)
    for first, second in zip(trained.controlnet.parameters(), again.controlnet.parameters()):
        assert torch.equal(first, second)
    other = new_controlnet(objective.base.network, 8)
    add_lora(other, objective.base.network, rank=4, targets=["to_q"])
    with pytest.raises(InputError, match="other --lora_rank or --lora_target_modules"):
        restore_lora(other, tmp_path)


def test_alpha_scales_and_targets_choose(objective):
    controlnet = new_controlnet(objective.base.network, 8)
    add_lora(controlnet, objective.base.network, rank=4, alpha=8, targets=["to_q", "conv_in"])
    adapted = {name for name, _ in controlnet.named_modules() if name.endswith("lora_A.default")}
    assert adapted and not any(name.startswith("controlnet_") for name in adapted)
    assert {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name in adapted} == {"to_q", "conv_in"}
    assert controlnet.conv_in.scaling == {"default": 2.0}
    for targets in (["nothing"], ["controlnet_mid_block"]):
        with pytest.raises(InputError, match="--lora_target_modules"):
            add_lora(new_controlnet(objective.base.network, 8), objective.base.network, rank=4, targets=targets)


def test_a_small_part_of_another_architecture_is_refused(objective, tmp_path):
    from diffusers_ext import embedded_model

    save_lora(make(objective, "lora").controlnet, tmp_path)
    with pytest.raises(InputError, match="do not belong together"):
        load_control_lora(tmp_path, load_base(embedded_model()).unet)


# The first N blocks


def test_the_first_blocks_alone_give_what_the_whole_gives(objective, batch, tmp_path):
    """Training leaves out the rest; a pipeline runs all of it, and gets the same prediction bit for bit."""
    trained = make(objective, "first-1")
    train(trained, batch, 4)
    save(trained, tmp_path)
    whole = ControlNetModel.from_pretrained(tmp_path)
    arguments = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([500, 3]),
        trained.base.encoders.embed(batch["text"])["text_embeddings"],
    )
    condition = batch["conditioning_pixel_values"]
    with torch.no_grad():
        down, middle = whole(*arguments, controlnet_cond=condition, return_dict=False)
        assert [bool(residual.any()) for residual in (*down, middle)] == [True, True, True, False, False]
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        controlled = trained.base.network(*arguments, **residuals).sample
        words = Conditioning(arguments[2])
        assert torch.equal(trained.predict(*arguments[:2], words, condition), controlled)
        assert not torch.equal(controlled, trained.base.network(*arguments).sample)


def test_blocks_that_are_not_used_are_small_and_zero(objective, tmp_path):
    full, first = new_controlnet(objective.base.network, 8), new_controlnet(objective.base.network, 8, blocks=1)
    size = lambda net: sum(parameter.numel() for parameter in net.parameters())  # noqa: E731
    assert size(first) < size(full)
    assert not any(parameter.any() for parameter in behind(first, 1).parameters())
    kept = front(first, 1).state_dict()
    base = full.state_dict()
    copied = [name for name in kept if not name.startswith("controlnet_")]
    assert len(copied) > 20 and all(torch.equal(kept[name], base[name]) for name in copied)


def test_a_number_of_blocks_that_is_not_there_is_refused(objective):
    for blocks in (0, 3):
        with pytest.raises(InputError, match="this base has 1 to 2 down blocks"):
            check_unused(new_controlnet(objective.base.network, 8), blocks)
    used = new_controlnet(objective.base.network, 8)
    check_unused(used, 1)
    torch.nn.init.ones_(used.controlnet_mid_block.bias)
    with pytest.raises(InputError, match="has learned to use later blocks"):
        check_unused(used, 1)
