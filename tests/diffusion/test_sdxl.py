"""Stable Diffusion XL: what the U-Net is told equals what diffusers' pipelines tell it, cached or not, and the script trains it."""

import copy
import dataclasses
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_ext.control.gap import ConditionGap
from diffusers_ext.control.hint import init_hint, new_controlnet, transfer
from diffusers_ext.control.objective import ControlObjective, Variant
from diffusers_ext.data import pairs as pairs_module
from diffusers_ext.data.batches import collate
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.rows import read_image_folder
from diffusers_ext.diffusion.base import Base, base_of, check_base, family_of, load_base
from diffusers_ext.diffusion.bases.encoders import FullPrecisionAutoencoderKL
from diffusers_ext.diffusion.check import check_vae
from diffusers_ext.diffusion.draw import draw
from diffusers_ext.diffusion.encoded import Encoded, EncoderCache
from diffusers_ext.diffusion.files import BaseFiles
from diffusers_ext.diffusion.noising import Diffusion
from diffusers_ext.diffusion.paths import path_of
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse

SCRIPT = Path(__file__).parents[2] / "training" / "train_controlnet.py"
SIZES = [(100, 50), (40, 72), (64, 64), (90, 32), (48, 48), (33, 80), (70, 60), (64, 40)]
CAPTIONS = ["red circle", "", "blue", "a red circle with blue background " * 9]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """An image folder of pictures of several sizes."""
    folder, draw, lines = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), []
    for number, size in enumerate(SIZES):
        for kind in ("image", "edges"):
            blocks = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            blocks.resize(size, Image.Resampling.NEAREST).save(folder / f"{kind}-{number}.png")
        files = {"file_name": f"image-{number}.png", "conditioning_image_file_name": f"edges-{number}.png"}
        lines.append(json.dumps({**files, "text": CAPTIONS[number % 3] or "blue background"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def dataset(photos, **how) -> Pairs:
    return Pairs(read_image_folder(str(photos)), 32, 0, 0.5, **how)


@pytest.fixture(scope="module")
def xl(untrained_xl):
    return load_base(untrained_xl)


def objective_of(pipe, encoders=None, **switches) -> ControlObjective:
    """A fresh ControlNet whose zero convolutions are zero."""
    torch.manual_seed(0)
    controlnet, unet = new_controlnet(pipe.unet, 8), copy.deepcopy(pipe.unet)
    diffusion = Diffusion(path_of(pipe.scheduler), seed=0)
    base = Base(family_of(unet), unet, encoders or base_of(pipe).encoders)
    return ControlObjective(controlnet, base, diffusion, Variant(**switches))


def wake(controlnet: ControlNetModel) -> None:
    """Give the zero convolutions weights, so that everything before them matters."""
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.2)
    torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight, std=0.2)


def test_captions_are_embedded_as_the_pipeline_does(xl):
    encoders = base_of(xl).encoders
    for caption in CAPTIONS:  # one at a time: batches round differently
        ours = encoders.conditioning({"text": [caption], "time_ids": torch.zeros(1, 6)})
        theirs, zeros, pooled, _ = xl.encode_prompt(caption)
        assert torch.equal(ours.text, theirs) and torch.equal(ours.pooled, pooled)
        assert not zeros.any()  # a negative prompt that is not given; one that is empty is embedded like any caption:
    empty, pooled = xl.encode_prompt("red", negative_prompt="")[1::2]
    ours = encoders.conditioning({"text": [""], "time_ids": torch.zeros(1, 6)})
    assert torch.equal(ours.text, empty) and empty.any() and torch.equal(ours.pooled, pooled)


@pytest.mark.parametrize(
    ("how", "original", "crop", "target"),
    [
        ({}, (50, 100), (0, 16), (32, 32)),  # 100 x 50 becomes 64 x 32, of which the middle is cut
        ({"flip": 1.0}, (50, 100), (0, 16), (32, 32)),
        ({"buckets": [(64, 32)] * 8}, (50, 100), (0, 0), (32, 64)),
        ({"buckets": [(16, 64)] * 8}, (50, 100), (0, 56), (64, 16)),
    ],
    ids=["square", "flip", "wide", "tall"],
)
def test_time_ids_are_the_pipelines_for_the_true_geometry(photos, xl, how, original, crop, target):
    expected = xl._get_add_time_ids(original, crop, target, torch.float32, text_encoder_projection_dim=16)
    data = dataset(photos, **how)
    for sample in (data[0, 0], data.without_picture((0, 0))):
        assert torch.equal(sample["time_ids"], expected[0])
    assert data[0, 0]["pixel_values"].shape[1:] == target


def test_a_random_cut_names_its_place(photos, xl):
    data = dataset(photos, random_crop=True)
    placed = {tuple(data[epoch, 0]["time_ids"].tolist()) for epoch in range(20)}
    assert len(placed) > 5 and {(numbers[:3], numbers[4:]) for numbers in placed} == {((50, 100, 0), (32, 32))}
    assert all(0 <= numbers[3] <= 32 for numbers in placed)


def test_the_prediction_is_diffusers(photos, xl):
    objective, data = objective_of(xl), dataset(photos)
    wake(objective.controlnet)
    batch = collate([data[0, index] for index in range(2)])
    latents, text = objective.encode(batch)
    noisy, timesteps, _ = objective.diffusion.diffuse(latents, batch["key"])
    prompts, _, pooled, _ = xl.encode_prompt(batch["text"])
    known = {
        "encoder_hidden_states": prompts,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": batch["time_ids"]},
    }
    condition = batch["conditioning_pixel_values"]
    down, middle = objective.controlnet(noisy, timesteps, controlnet_cond=condition, return_dict=False, **known)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    expected = xl.unet(noisy, timesteps, **residuals, **known).sample
    assert torch.equal(objective.predict(noisy, timesteps, text, condition), expected)
    moved = dataclasses.replace(text, time_ids=batch["time_ids"] + 8)
    assert not torch.equal(objective.predict(noisy, timesteps, moved, condition), expected)


def test_latents_are_normalised_as_the_pipeline_undoes_it(xl):
    encoders = base_of(xl).encoders
    latents = torch.randn(2, 4, 8, 8)
    assert torch.equal(encoders.normalise(latents), latents * 0.13025)
    mean, std = [0.5, -1.0, 2.0, 0.0], [2.0, 3.0, 0.5, 1.0]
    vae = copy.deepcopy(xl.vae)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    pipe = copy.copy(xl)
    pipe.vae = vae
    as_rows = [torch.tensor(values)[None, :, None, None] for values in (mean, std)]
    undone = base_of(pipe).encoders.normalise(latents) * as_rows[1] / 0.13025 + as_rows[0]
    torch.testing.assert_close(undone, latents)


def losses_of(objective, data, steps=6) -> list[float]:
    """Train for a few steps, one sample at a time."""
    wake(objective.controlnet)
    optimizer = torch.optim.AdamW(objective.controlnet.parameters(), lr=1e-3)
    found = []
    for step in range(steps):
        loss = objective(collate([data[divmod(step, len(data))]]))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_cached_equals_uncached(photos, untrained_xl, xl, tmp_path, monkeypatch):
    data, base, loaded = dataset(photos), BaseFiles.find(str(untrained_xl)), []

    def load():
        loaded.append(True)
        return base_of(xl).encoders

    def cached() -> Encoded:
        cache = EncoderCache(tmp_path, base, load)
        moments = cache.moments([row.image for row in data.rows], data.picture, {"resolution": 32})
        return Encoded(data, moments, cache.texts(data.captions()), conditions=True)

    uncached = losses_of(objective_of(xl), data)
    pipe, first = base.load_without_encoders(), cached()
    assert pipe.vae is pipe.text_encoder is pipe.text_encoder_2 is pipe.tokenizer_2 is None and loaded == [True]
    monkeypatch.setattr(pairs_module, "load", lambda file: pytest.fail(f"{file} was decoded"))
    assert losses_of(objective_of(pipe, base.base(pipe).encoders), cached()) == uncached and loaded == [True]
    texts = {first[epoch, index]["text"] for epoch in range(4) for index in range(8)}
    assert texts == {"", "red circle", "blue", "blue background"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_0_is_the_base_bit_for_bit(photos, xl, dtype):
    unet, data = copy.deepcopy(xl.unet).to(dtype), dataset(photos)
    controlnet = new_controlnet(unet, 8)
    init_hint(controlnet, "data", data.sample_conditions(8), seed=0)
    controlnet.to(dtype)
    batch = collate([data[0, index] for index in range(2)])
    conditioning = base_of(xl).encoders.conditioning(batch)
    known = base_of(xl).family.told(dataclasses.replace(conditioning, text=conditioning.text.to(dtype)))
    noisy, condition = torch.randn(2, 4, 4, 4).to(dtype), batch["conditioning_pixel_values"].to(dtype)
    with torch.no_grad():
        down, middle = controlnet(noisy, 500, controlnet_cond=condition, return_dict=False, **known)
        assert not any(residual.any() for residual in (*down, middle))
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        assert torch.equal(unet(noisy, 500, **known, **residuals).sample, unet(noisy, 500, **known).sample)


def test_the_untrained_pipeline_draws_the_bases_picture(photos, xl):
    controlnet = new_controlnet(xl.unet, 8)
    init_hint(controlnet, "data", dataset(photos).sample_conditions(8), seed=0)
    parts = {name: part for name, part in xl.components.items() if part is not None}
    controlled = StableDiffusionXLControlNetPipeline(**parts, controlnet=controlnet, add_watermarker=False)
    settings = {"num_inference_steps": 4, "output_type": "pt"}
    for pipe in (xl, controlled):
        pipe.set_progress_bar_config(disable=True)
    condition = dataset(photos).condition(0)[None]
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    ours = controlled("red circle", image=condition, generator=seeds[0], **settings).images
    base = xl("red circle", height=32, width=32, generator=seeds[1], **settings).images
    assert torch.equal(ours, base) and ours.std() > 0


def test_gradients_reach_zero_convolutions_first_then_the_copy_then_the_trunk(photos, xl):
    objective, data, reached = objective_of(xl), dataset(photos), []
    parameters = dict(objective.controlnet.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    batch = collate([data[0, index] for index in range(2)])
    for _ in range(3):
        objective(batch)["loss"].backward()
        reached.append({name for name, p in parameters.items() if p.grad is not None and p.grad.any()})
        optimizer.step()
        optimizer.zero_grad()
    assert reached[0] == {name for name in parameters if name.startswith(("controlnet_down", "controlnet_mid"))}
    trunk = {name for name in parameters if name.startswith("controlnet_cond_embedding") and "conv_out" not in name}
    assert reached[1] == set(parameters) - trunk and "add_embedding.linear_1.weight" in reached[1]
    assert reached[2] == set(parameters)
    assert all(p.grad is None for p in objective.base.parameters())


def test_the_gap_opens_with_use_of_the_condition(photos, xl):
    objective, data = objective_of(xl), dataset(photos)
    gap = ConditionGap(objective, collate([data[0, index] for index in range(4)]))
    assert gap()["gap"] == 0
    wake(objective.controlnet)
    assert gap()["gap"] != 0


def test_the_variants_learn_what_they_should(photos, xl):
    learning = lambda objective: {name for name, p in objective.named_parameters() if p.requires_grad}  # noqa: E731
    plain, unlocked = learning(objective_of(xl)), learning(objective_of(xl, unlock_decoder=True))
    added = {name.split(".")[2] for name in unlocked - plain}
    assert plain < unlocked and added == {"up_blocks", "conv_norm_out", "conv_out"}
    only_mid = learning(objective_of(xl, only_mid_control=True))
    assert {name.split(".")[1] for name in plain - only_mid} == {"controlnet_down_blocks"}


def test_transfer_moves_the_added_embedding_too(xl):
    other = copy.deepcopy(xl.unet)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    controlnet = new_controlnet(xl.unet, 8)
    transfer(controlnet, xl.unet, other)
    moved, expected = controlnet.state_dict(), other.state_dict()
    copied = {name for name in moved if name in expected}
    assert "add_embedding.linear_2.bias" in copied
    for name in copied:
        torch.testing.assert_close(moved[name], expected[name])


def test_sharded_weights_are_read_back_strictly(xl, tmp_path):
    """As save_pretrained writes SDXL's U-Net: in several files from 10 GB on."""
    objective, fresh = objective_of(xl, unlock_decoder=True), objective_of(xl, unlock_decoder=True)
    for module in (objective.controlnet, objective.base.network):
        for parameter in module.parameters():
            parameter.data += 0.1
    objective.controlnet.save_pretrained(tmp_path / "controlnet")
    objective.base.network.save_pretrained(tmp_path / "unet", max_shard_size="100KB")
    shards = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 1 and len(list((tmp_path / "controlnet").glob("*.safetensors"))) == 1
    fresh.load(tmp_path)
    for name in ("controlnet", "unet"):
        pair = (each.trainable[name].state_dict().values() for each in (objective, fresh))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*pair))
    save_file(dict(list(load_file(shards[0]).items())[1:]), shards[0], {"format": "pt"})
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load(tmp_path)


def test_the_vae_stays_in_float32_where_float16_overflows(untrained, untrained_xl, tmp_path):
    def full(model, forward, vae=None):
        return BaseFiles.find(str(model), vae, forward=forward).full_precision_vae

    mended = shutil.copytree(untrained_xl / "vae", tmp_path / "mended")
    config = json.loads((mended / "config.json").read_text())
    (mended / "config.json").write_text(json.dumps({**config, "force_upcast": False}))
    assert full(untrained_xl, torch.float16)
    assert not full(untrained_xl, torch.float16, str(mended)) and not full(untrained_xl, torch.bfloat16)
    assert not full(untrained, torch.float16)  # its pipeline does not upcast either

    pipe = BaseFiles.find(str(untrained_xl), forward=torch.float16).load()
    assert type(pipe.vae) is FullPrecisionAutoencoderKL and pipe.vae.dtype == torch.float32
    assert pipe.unet.dtype == pipe.text_encoder_2.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in pipe.vae.parameters())
    pixels, latents = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
    outside = base_of(pipe).encoders.moments(pixels), pipe.vae.decode(latents).sample
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(base_of(pipe).encoders.moments(pixels), outside[0])
        assert torch.equal(pipe.vae.decode(latents).sample, outside[1])
        plain = load_base(untrained_xl).vae.decode(latents).sample
    assert not torch.equal(plain, outside[1])  # autocast would have rounded


def test_half_precision_draws_the_bases_picture(photos, untrained_xl):
    """As previews draw: a ControlNet in float32 beside a U-Net in float16 and a VAE in float32, under autocast."""
    pipe = BaseFiles.find(str(untrained_xl), forward=torch.float16).load()
    controlnet = new_controlnet(copy.deepcopy(pipe.unet).float(), 8)
    controlled = AutoPipelineForText2Image.from_pipe(pipe, controlnet=controlnet)
    assert type(controlled) is StableDiffusionXLControlNetPipeline and controlled.config.force_zeros_for_empty_prompt
    settings, condition = {"num_inference_steps": 2, "height": 32, "width": 32}, dataset(photos).condition(0)
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        base, ours = draw(pipe, ["red"], **settings), draw(controlled, ["red"], image=[condition], **settings)
    assert ours[0].tobytes() == base[0].tobytes() and np.asarray(ours[0]).std() > 0


def refused(check, *arguments) -> str:
    with pytest.raises(InputError) as error:
        check(*arguments)
    return str(error.value)


def test_what_is_no_base_is_named(untrained_xl, tmp_path):
    base = shutil.copytree(untrained_xl, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    check_base(str(base))

    def with_parts(**parts):
        (base / "model_index.json").write_text(json.dumps({**index, **parts}))
        return refused(check_base, str(base))

    refiner = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]}
    assert "the text_encoder of this StableDiffusionXLImg2ImgPipeline is None, expected CLIPTextModel" in with_parts(
        **refiner
    )
    sd3 = {"_class_name": "StableDiffusion3Pipeline", "text_encoder": ["transformers", "CLIPTextModelWithProjection"]}
    assert "of this StableDiffusion3Pipeline is CLIPTextModelWithProjection" in with_parts(**sd3)
    edm = {"scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]}
    assert "EDMDPMSolverMultistepScheduler is of continuous-time diffusion" in with_parts(**edm)
    (base / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(base / "tokenizer_2")
    assert "tokenizer_2: missing, though model_index.json names it" in refused(check_base, str(base))
    assert "no config.json; give the folder of an AutoencoderKL" in refused(check_vae, str(base))
    assert "UNet2DConditionModel, expected AutoencoderKL" in refused(check_vae, str(base / "unet"))
    assert "no such folder" in refused(check_vae, str(tmp_path / "nowhere"))


def test_the_real_architecture_has_its_known_size():
    """SDXL 1.0's published U-Net configuration, without memory for it; the figures are those of its model card and paper."""
    config = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        controlnet = new_controlnet(unet, 8)
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (unet, controlnet)]
    assert [round(count / 1e6) for count in counts] == [2567, 1251]


# The script.


def arguments(base, data, output, *more) -> list[str]:
    settings = {
        "--pretrained_model_name_or_path": base,
        "--train_data_dir": data,
        "--output_dir": output,
        "--resolution": 32,
        "--learning_rate": 1e-3,
        "--seed": 3,
        "--train_batch_size": 1,
        "--proportion_empty_prompts": 0.5,
        "--num_validation_images": 1,
        "--validation_steps": 1000,
        "--logging_steps": 1,
        "--held_out_samples": 2,
    }
    return [str(word) for pair in settings.items() for word in pair] + [str(word) for word in more]


def call(*argv: str) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["main"](parse(script["Options"], list(map(str, argv))))


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


@pytest.mark.launch
def test_the_script_trains_and_its_run_loads_elsewhere(launch, fresh, untrained_xl, circles, tmp_path):
    run = tmp_path / "run"
    launch(SCRIPT, *arguments(untrained_xl, circles, run, "--max_train_steps", 2))
    measured = read_metrics(run)[-1]
    assert list(losses(run)) == [1, 2] and {"iou", "gap"} <= set(measured)
    assert "StableDiffusionXLControlNetPipeline.from_pretrained" in (run / "README.md").read_text()
    code = f"""
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline
from PIL import Image
final = ControlNetModel.from_pretrained({str(run)!r})
assert final.controlnet_mid_block.weight.any() and final.config.addition_embed_type == "text_time"
pipe = StableDiffusionXLControlNetPipeline.from_pretrained({str(untrained_xl)!r}, controlnet=final, add_watermarker=False)
image = pipe("red circle", image=Image.new("RGB", (32, 32)), num_inference_steps=2, output_type="pt").images
assert image.shape == (1, 3, 32, 32) and image.isfinite().all()
"""
    fresh(code)


@pytest.mark.launch
def test_resuming_from_a_cache_is_exact(untrained_xl, circles, tmp_path):
    """With averaging, checkpointed activations, the decoder unlocked, another VAE, and previews that load the encoders."""
    vae = shutil.copytree(untrained_xl / "vae", tmp_path / "other")
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    save_file({n: w * 1.01 for n, w in weights.items()}, vae / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    more = ["--use_ema", "--gradient_checkpointing", "--unlock_decoder", "--checkpointing_steps", 2]
    more += ["--encoder_cache_dir", tmp_path / "cache", "--pretrained_vae_model_name_or_path", vae]
    straight, split = tmp_path / "straight", tmp_path / "split"
    call(*arguments(untrained_xl, circles, straight, *more, "--max_train_steps", 4))
    call(*arguments(untrained_xl, circles, split, *more, "--max_train_steps", 2))
    resume = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest"]
    call(*arguments(untrained_xl, circles, split, *more, *resume))
    assert losses(split) == losses(straight) and list(losses(split)) == [1, 2, 3, 4]
    for name in ("", "unet/"):
        file = f"{name}diffusion_pytorch_model.safetensors"
        assert (split / file).read_bytes() == (straight / file).read_bytes()
    assert 'vae=AutoencoderKL.from_pretrained("other")' in (straight / "README.md").read_text()
    call(*arguments(untrained_xl, circles, tmp_path / "own", *more[:-2], "--max_train_steps", 1))
    assert losses(tmp_path / "own")[1] != losses(straight)[1]
    assert (
        len(list((tmp_path / "cache").glob("moments-*"))) == 2 and len(list((tmp_path / "cache").glob("texts-*"))) == 1
    )


@pytest.mark.launch
def test_dry_run_counts_both_text_encoders(untrained_xl, xl, circles, tmp_path, capsys):
    call(*arguments(untrained_xl, circles, tmp_path / "out", "--dry_run"))
    told = capsys.readouterr().out
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        count = sum(parameter.numel() for parameter in getattr(xl, name).parameters())
        assert f"  {name}: {count:,} parameters, 0 trained" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.launch
def test_buckets_crops_and_flips_train(untrained_xl, photos, tmp_path):
    more = ["--random_crop", "--random_flip", "--aspect_buckets", "--max_train_steps", 2, "--held_out_samples", 0]
    call(*arguments(untrained_xl, photos, tmp_path / "run", *more, "--resolution", 64, "--only_mid_control"))
    assert list(losses(tmp_path / "run")) == [1, 2]


@pytest.mark.launch
def test_parts_of_another_kind_are_refused(untrained, untrained_xl, circles, tmp_path):
    new_controlnet(load_base(untrained).unet, 8).save_pretrained(tmp_path / "theirs")
    given = arguments(untrained_xl, circles, tmp_path / "out", "--controlnet_model_name_or_path", tmp_path / "theirs")
    assert "they do not belong together" in refused(call, *given)
    assert "expected AutoencoderKL" in refused(call, *given, "--pretrained_vae_model_name_or_path", untrained / "unet")
    assert not (tmp_path / "out").exists()
