"""training/train_reward_tuning.py and train_control_reward.py: run, resume exactly, stop early, refuse; results load elsewhere."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.options import declared, parse
from diffusers_ext.preferences.rankings import RankedPrompt, Ranking, write
from diffusers_ext.toy import circles as fill50k
from diffusers_ext.tuning.build import read_source
from diffusers_ext.tuning.card import suspicions
from diffusers_ext.tuning.options import METHODS, check_options

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "train_reward_tuning.py"
OPTIONS = runpy.run_path(str(SCRIPT))["Options"]
pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Five prompts: no multiple of any batch size used here."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(fill50k.scene(index).prompt for index in range(5)) + "\n")
    path.with_name("one.txt").write_text(fill50k.scene(9).prompt + "\n")
    return path


def arguments(untrained, prompts, output, *more) -> list[str]:
    settings = {
        "--pretrained_model_name_or_path": untrained,
        "--output_dir": output,
        "--reward": "test_train_tuning:smooth",
        "--held_out_reward": "test_train_tuning:contrast",
        "--resolution": 64,
        "--num_inference_steps": 3,
        "--train_batch_size": 2,
        "--lora_rank": 2,
        "--num_validation_images": 2,
        "--validation_steps": 100,
        "--seed": 3,
    }
    if prompts is not None:
        settings |= {"--prompts": prompts, "--validation_prompts": prompts.with_name("one.txt")}
    return [str(word) for pair in settings.items() for word in pair] + [str(word) for word in more]


def smooth(texts, images):
    """A reward: bright pictures."""
    return torch.stack([image.mean() for image in images])


def darkness(texts, images):
    """A reward: the opposite of smooth."""
    return -smooth(texts, images)


def contrast(texts, images):
    """A reward: pictures of much contrast."""
    return torch.stack([image.std() for image in images])


def call(script, *argv) -> None:
    """Run a script's main in this process."""
    made = runpy.run_path(str(ROOT / "training" / script))
    made["main"](parse(made["Options"], list(map(str, argv))))


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


@pytest.fixture(scope="module")
def common() -> list:
    """What three runs share: a random number of steps with a gradient, fresh noise at each, recomputation, a drift penalty."""
    return [
        *("--max_train_steps", 4, "--checkpointing_steps", 2, "--learning_rate", 1e-2, "--method", "alignprop"),
        *("--eta", 1.0, "--drift_weight", 0.5, "--gradient_checkpointing"),
    ]


@pytest.fixture(scope="module")
def straight(untrained, prompts, common, tmp_path_factory) -> Path:
    """A run of one process that nothing interrupts."""
    run = tmp_path_factory.mktemp("straight") / "run"
    more = ["--train_batch_size", 4, "--no-strength_sweep"]
    call(SCRIPT.name, *arguments(untrained, prompts, run, *common, *more))
    return run


@pytest.fixture(scope="module")
def launched(launch, untrained, prompts, common, tmp_path_factory) -> Path:
    """The same, launched on two processes with half the batch each, and the adapters measured at several strengths."""
    run = tmp_path_factory.mktemp("launched") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{Path(__file__).parent}")
        launch(SCRIPT, *arguments(untrained, prompts, run, *common), processes=2)
    return run


def test_a_launched_run_loads_in_a_fresh_process(launched, fresh, untrained):
    run = launched
    code = f"""
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(untrained)!r})
draw = lambda: pipe("red circle", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)).images
base = draw()
pipe.load_lora_weights({str(run)!r})
assert (draw() - base).abs().max() > 1e-4
pipe.set_adapters(pipe.get_active_adapters(), 0.0)
assert torch.allclose(draw(), base, atol=1e-5)
"""
    fresh(code)
    card, rows = (run / "README.md").read_text(), read_metrics(run)
    measured = [row for row in rows if "held_out_reward" in row][-1]
    assert f"{measured['held_out_reward']:.3g}" in card and "load_lora_weights" in card
    assert {"reward", "held_out_reward", "diversity", "distance_from_base"} <= measured.keys()
    strengths = json.loads((run / "strength.json").read_text())
    assert strengths[0]["distance_from_base"] < 1e-5 < strengths[4]["distance_from_base"]
    np.testing.assert_allclose(strengths[4]["reward"], measured["reward"], rtol=1e-4)
    for name in ("strength.png", "rewards.png", "samples/strength.png", "samples/step-000004.png"):
        assert Image.open(run / name).size[0] > 100


def test_resuming_is_exact(straight, untrained, prompts, common, tmp_path):
    shutil.copytree(straight, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    more = ["--train_batch_size", 4, "--no-strength_sweep", "--resume_from_checkpoint", "latest"]
    call(SCRIPT.name, *arguments(untrained, prompts, tmp_path / "cut", *common, *more))
    assert losses(tmp_path / "cut") == losses(straight) and len(losses(straight)) == 4
    one, two = (load_file(run / "pytorch_lora_weights.safetensors") for run in (tmp_path / "cut", straight))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_take_the_steps_of_one(straight, launched):
    """Noise and truncation belong to the sample: it does not matter which rank draws it, nor in which batch."""
    one, two = losses(straight), losses(launched)
    assert list(one) == list(two) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=2e-5)


def test_dpo_learns_from_rankings_and_a_whole_unet_is_a_pipeline(untrained, tmp_path):
    draw = np.random.default_rng(0)
    ranked = []
    for number in range(3):
        files = [tmp_path / f"{number}-{at}.png" for at in range(3)]
        for file in files:
            Image.fromarray(draw.integers(0, 255, (40, 64, 3), np.uint8)).save(file)
        prompt = fill50k.scene(number).prompt
        ranked.append(RankedPrompt(str(number), prompt, tuple(files), (Ranking("ada", (1, 2, 2)),)))
    path = write(tmp_path / "rankings.jsonl", ranked)
    more = ["--method", "dpo", "--rankings", path, "--full_unet", "--max_train_steps", 2]
    more += ["--lora_rank", 16]  # the default: no adapters are asked for
    call(SCRIPT.name, *arguments(untrained, None, tmp_path / "run", *more, "--encoder_cache_dir", tmp_path / "cache"))
    found = losses(tmp_path / "run")
    assert found[1] == pytest.approx(np.log(2)) and found[2] != found[1]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run")
    before = DiffusionPipeline.from_pretrained(untrained).unet.conv_out.weight
    assert not torch.equal(pipe.unet.conv_out.weight, before)


def test_the_pretraining_term_and_sdxl(untrained_xl, prompts, circles, tmp_path, capsys):
    """And what is measured on the prompt that is learnt from is not called held out."""
    more = ["--prompts", prompts.with_name("one.txt")]
    more += ["--pretrain_data_dir", circles, "--guidance_scale", 2, "--max_train_steps", 1, "--no-strength_sweep"]
    call(SCRIPT.name, *arguments(untrained_xl, prompts, tmp_path / "run", *more))
    (row,) = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert "warning: measures on prompts, 1 of 1 learnt from too" in capsys.readouterr().out
    assert "held-out prompts" not in (tmp_path / "run" / "README.md").read_text()
    assert row["loss"] == pytest.approx(2 - row["reward"] + row["pretraining"], rel=1e-4)
    pipe = DiffusionPipeline.from_pretrained(untrained_xl)
    pipe.load_lora_weights(tmp_path / "run")
    assert pipe.get_active_adapters()


def test_a_run_stops_when_the_held_out_reward_falls_and_stays_stopped(untrained, prompts, tmp_path, capsys):
    """What is held out is the opposite of what is optimised: the base stays best, and best/ is never written."""
    more = ["--max_train_steps", 9, "--validation_steps", 1, "--early_stopping_patience", 2, "--learning_rate", 1e-2]
    more += ["--no-strength_sweep", "--method", "draft", "--held_out_reward", "test_train_tuning:darkness"]
    call(SCRIPT.name, *arguments(untrained, prompts, tmp_path / "run", *more))
    run = tmp_path / "run"
    rows = [row for row in read_metrics(run) if "held_out_reward" in row]
    assert [row["step"] for row in rows] == [1, 2] and not (run / "best").exists()
    assert (run / "pytorch_lora_weights.safetensors").exists() and (run / "checkpoint-2").exists()
    assert "fooled" in (run / "README.md").read_text()
    capsys.readouterr()
    call(SCRIPT.name, *arguments(untrained, prompts, run, *more, "--resume_from_checkpoint", "latest"))
    assert "stopped early at step 2" in capsys.readouterr().out
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [1, 2]


def test_prompts_that_are_learnt_from_are_not_called_held_out(prompts, tmp_path):
    def source(*more):
        return read_source(parse(OPTIONS, ["--prompts", str(prompts), *map(str, more)]))

    assert source().measured_on == "prompts, 4 of 4 learnt from too", "too few to keep any"
    assert source("--validation_prompts", prompts.with_name("one.txt")).measured_on == "held-out prompts"
    both = tmp_path / "both.txt"
    both.write_text(prompts.read_text().splitlines()[2] + "\n" + prompts.with_name("one.txt").read_text())
    assert source("--validation_prompts", both).measured_on == "prompts, 1 of 2 learnt from too"
    many = tmp_path / "many.txt"
    many.write_text("".join(f"{number} circles\n" for number in range(40)))
    assert source("--prompts", many).seen == 0


def test_signs_of_a_fooled_reward():
    rows = [{"step": 1, "reward": 2.0, "reward_base": 1.0, "held_out_reward": 0.5, "held_out_reward_base": 0.9}]
    assert "fooled" in suspicions(rows)[0]
    assert not suspicions([{**rows[0], "held_out_reward": 1.1}])
    assert (
        "one thing only"
        in suspicions([{**rows[0], "held_out_reward": 1.1, "diversity": 0.1, "diversity_base": 0.3}])[0]
    )
    assert "best/" in suspicions([{**rows[0], "held_out_reward": 1.9}, {**rows[0], "held_out_reward": 1.0}])[0]
    assert "No held-out" in suspicions([{"step": 1, "reward": 1.0}])[0]


USED_BY = {name: option.requires for name, option in declared(OPTIONS).items() if "method" in option.requires}


@pytest.mark.parametrize("name", USED_BY)
def test_an_option_that_a_method_would_ignore_is_refused(name):
    """The official script parses --resolution, --snr_gamma and others, and reads none of them."""
    options = parse(OPTIONS, ["--prompts", "prompts.txt", "--reward", "fill50k:soft"])
    setattr(options, name, 3)
    for method in set(METHODS) - set(USED_BY[name]["method"]):
        options.method = method
        with pytest.raises(InputError, match=f"--{name} is for --method"):
            check_options(options)


@pytest.mark.parametrize(
    "method, more",
    [
        ("cpo", ["--snr_gamma", 5]),
        ("cpo", ["--loss_type", "huber"]),
        ("cpo", ["--decode_batch_size", 2]),
        ("cpo", ["--consistency", "colours"]),
        ("consistency", ["--cpo_beta", 1]),
    ],
)
def test_a_controlnets_tuning_refuses_options_of_the_other_method(tmp_path, method, more):
    with pytest.raises(InputError, match=f"{more[0]} is for --method .*; {method} would ignore it"):
        call("train_control_reward.py", "--method", method, "--output_dir", tmp_path / "run", *more)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--reward", "fill50k"], "--held_out_reward"),
        (["--reward", "test_train_tuning:nothing"], "nothing"),
        (["--reward_margin", -5], "--no-use_margin"),
        (["--lv_repeats", 3], "refl would ignore it"),
        (["--held_out_reward", "test_train_tuning:smooth"], "is --reward itself"),
        (["--reward_margin", 3, "--no-use_margin"], "--reward_margin is for --use_margin"),
        (["--pretrain_weight", 3], "--pretrain_weight is for --pretrain_data_dir"),
        (["--grad_window", 2, 7], "--grad_window"),
        (["--method", "dpo"], "--rankings"),
        (["--resolution", 60], "multiple"),
        (["--full_unet", "--lora_alpha", 3], "--full_unet"),
        (["--method", "draft", "--grad_steps", 9], "--grad_steps"),
        (["--tiny_decoder", "nowhere"], "--tiny_decoder"),
    ],
)
def test_mistakes_are_refused_and_leave_nothing(untrained, prompts, tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        call(SCRIPT.name, *arguments(untrained, prompts, tmp_path / "run", "--max_train_steps", 1, *more))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_and_the_preset(untrained, prompts, tmp_path, capsys):
    preset = ROOT / "training" / "presets" / "refl_official.json"
    found = arguments(
        untrained, prompts, tmp_path / "run", "--dry_run", "--config", preset, "--num_inference_steps", 40
    )
    found += ["--lora_rank", "16"]  # the default: no adapters are asked for
    call(SCRIPT.name, *found)
    printed = capsys.readouterr().out
    assert "grad_window: [30, 39]" in printed and "eta: 1.0" in printed and not (tmp_path / "run").exists()


def test_a_tiny_decoder_carries_the_gradient(untrained, prompts, tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**blocks, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4).save_pretrained(
        tmp_path / "tiny"
    )
    more = ["--tiny_decoder", tmp_path / "tiny", "--max_train_steps", 1, "--no-strength_sweep"]
    call(SCRIPT.name, *arguments(untrained, prompts, tmp_path / "run", *more))
    assert np.isfinite(losses(tmp_path / "run")[1])
    blocks = {name: (8,) * 3 for name in blocks}
    other = AutoencoderTiny(**blocks, num_encoder_blocks=(1,) * 3, num_decoder_blocks=(1,) * 3)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="--tiny_decoder"):
        call(SCRIPT.name, *arguments(untrained, prompts, tmp_path / "two", *more, "--tiny_decoder", tmp_path / "other"))


@pytest.mark.parametrize("method", ["consistency", "cpo"])
def test_a_controlnet_is_tuned(untrained, circles, pairs, tmp_path, method):
    from diffusers_ext.control.hint import new_controlnet
    from diffusers_ext.diffusion.base import load_base

    new_controlnet(load_base(str(untrained)).unet, 8).save_pretrained(tmp_path / "start")
    common = ["--pretrained_model_name_or_path", untrained, "--train_data_dir", circles, "--resolution", 64]
    common += ["--controlnet_model_name_or_path", tmp_path / "start", "--max_train_steps", 2, "--train_batch_size", 4]
    common += ["--num_validation_images", 1, "--held_out_samples", 2, "--output_dir", tmp_path / "run"]
    common += ["--method", method, "--reward_timestep_max", 600]
    call("train_control_reward.py", *common)
    part = {"consistency": "inconsistency", "cpo": "hinge"}[method]
    assert all(row[part] > 0 for row in read_metrics(tmp_path / "run") if "loss" in row)
    tuned, start = (ControlNetModel.from_pretrained(tmp_path / name) for name in ("run", "start"))
    assert not torch.equal(tuned.controlnet_mid_block.weight, start.controlnet_mid_block.weight)
    card = (tmp_path / "run" / "README.md").read_text()
    assert {"consistency": "`edges`", "cpo": "CPO"}[method] in card and "timesteps up to 600" in card
