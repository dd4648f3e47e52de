"""training/train_controlnet.py as its users run it: launched, killed, resumed, misused, and its results loaded elsewhere."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from control_script import SCRIPT, arguments, call, losses, refusal
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from diffusers_ext.control.data import read_data
from diffusers_ext.control.start import start_controlnet
from diffusers_ext.data.held_out import hold_out
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.engine.state import State
from diffusers_ext.options import parse

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.launch


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (1, ["--train_batch_size", 2]),
        (2, ["--train_batch_size", 1, "--gradient_accumulation_steps", 3, "--dataloader_num_workers", 2, "--use_ema"]),
    ],
    ids=["plain", "2-processes-accumulation-workers-ema"],
)
def test_kill_and_resume_is_exact(launch, launch_and_kill, untrained, circles, tmp_path, processes, settings):
    common = ["--max_train_steps", 24, "--checkpointing_steps", 8, "--logging_steps", 1, *settings]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    launch(SCRIPT, *arguments(untrained, circles, straight, *common), processes=processes)
    again = arguments(untrained, circles, killed, *common, "--resume_from_checkpoint", "latest")
    launch_and_kill(SCRIPT, *again, when=lambda: 10 in losses(killed), processes=processes)
    assert (killed / "checkpoint-8").is_dir() and not (killed / "checkpoint-24").exists()
    done = launch(SCRIPT, *again, processes=processes)
    assert "resuming from" in done.stdout
    assert losses(killed) == losses(straight) and list(losses(killed)) == list(range(1, 25))
    name = "diffusion_pytorch_model.safetensors"
    assert (killed / name).read_bytes() == (straight / name).read_bytes()


def test_ranks_draw_apart_and_together_equal_one(launch, tmp_path):
    program = ROOT / "tests" / "programs" / "record_draws.py"
    for name, processes, batch in (("two", 2, 2), ("one", 1, 4)):
        (tmp_path / name).mkdir()
        launch(program, tmp_path / name, batch, 2, processes=processes)
    ranks = [json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in range(2)]
    alone = json.loads((tmp_path / "one" / "rank-0.json").read_text())
    for first, second in zip(*(rank["rows"] for rank in ranks)):
        assert not {tuple(key) for key in first["keys"]} & {tuple(key) for key in second["keys"]}
        assert first["timesteps"] != second["timesteps"]
        assert not set(first["noise"]) & set(second["noise"])
    assert ranks[0]["weight"] == ranks[1]["weight"]
    torch.testing.assert_close(torch.tensor(ranks[0]["weight"]), torch.tensor(alone["weight"]), atol=1e-5, rtol=1e-5)
    one, two = losses(tmp_path / "one" / "run"), losses(tmp_path / "two" / "run")
    assert one == pytest.approx(two, abs=1e-6)


def test_a_run_folder_explains_itself_and_loads_elsewhere(launch, untrained, circles, tmp_path):
    run = tmp_path / "run"
    drawn = [
        "--max_train_steps",
        4,
        "--checkpointing_steps",
        2,
        "--validation_steps",
        2,
        "--checkpoints_total_limit",
        1,
    ]
    launch(SCRIPT, *arguments(untrained, circles, run, *drawn, "--report_to", "tensorboard"), real=True)
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-4"}
    assert [path.name for path in sorted((run / "samples").iterdir())] == ["step-000002.png", "step-000004.png"]
    assert (run / "data.png").exists() and (run / "best" / "config.json").exists()
    assert json.loads((run / "options.json").read_text())["options"]["seed"] == 3
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 2, 3, 4, 4]
    assert {"iou", "circle_error", "background_error"} <= set(read_metrics(run)[-1])
    assert list(run.rglob("events.out.tfevents*"))
    card = (run / "README.md").read_text()
    assert (
        "accelerate launch training/train_controlnet.py" in card
        and "TODO" not in card
        and "samples/step-000004.png" in card
    )
    code = f"""
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
final = ControlNetModel.from_pretrained({str(run)!r})
saved = ControlNetModel.from_pretrained({str(run / "checkpoint-4")!r}, subfolder="controlnet")
assert all(torch.equal(a, b) for a, b in zip(final.state_dict().values(), saved.state_dict().values()))
assert final.controlnet_mid_block.weight.any()
parts = dict(controlnet=final, safety_checker=None, requires_safety_checker=False)
pipe = StableDiffusionControlNetPipeline.from_pretrained({str(untrained)!r}, **parts)
image = pipe("red circle", image=Image.new("RGB", (64, 64)), num_inference_steps=2, output_type="pt").images
assert image.shape == (1, 3, 64, 64) and image.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_mistakes_are_refused_before_anything_is_written(untrained, circles, tmp_path):
    out = tmp_path / "out"
    good = arguments(untrained, circles, out)
    assert "no such folder" in refusal(*arguments(tmp_path / "nowhere", circles, out))
    assert "no model_index.json" in refusal(*arguments(circles, circles, out))
    assert "no such folder" in refusal(*arguments(untrained, tmp_path / "nowhere", out))
    assert "--train_data_dir is missing" in refusal("--output_dir", out)
    assert "no caption under 'prompt'" in refusal(*good, "--caption_column", "prompt")
    assert "--resolution 60: this base needs a multiple of 16" in refusal(*good, "--resolution", 60)
    assert "--train_batch_size must be at least 1" in refusal(*good, "--train_batch_size", 0)
    assert "--report_to clearml: clearml is not installed" in refusal(*good, "--report_to", "clearml")
    assert "--report_to wand: unknown; choose from" in refusal(*good, "--report_to", "wand")
    assert "--transfer_from is for --controlnet_model_name_or_path" in refusal(*good, "--transfer_from", untrained)
    assert "--validation_prompt needs --validation_image" in refusal(*good, "--validation_prompt", "x")
    assert "nothing.png" in refusal(*good, "--validation_image", "nothing.png", "--validation_prompt", "x")
    assert "2 --validation_image but 0" in refusal(*good, "--validation_image", "a.png", "b.png")
    assert "checkpoint-7" in refusal(*good, "--resume_from_checkpoint", out / "checkpoint-7")
    assert not out.exists()


def test_incomplete_downloads_are_named(untrained, circles, tmp_path):
    base = shutil.copytree(untrained, tmp_path / "base")
    shutil.rmtree(base / "vae")
    assert "vae: missing, though model_index.json names it" in refusal(*arguments(base, circles, tmp_path / "out"))


def test_an_existing_folder_is_never_overwritten(untrained, circles, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    assert "is not empty and holds no run" in refusal(*arguments(untrained, circles, tmp_path / "mine"))
    (tmp_path / "mine" / "options.json").write_text("{}")
    assert "already holds a run; continue it with" in refusal(*arguments(untrained, circles, tmp_path / "mine"))
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["options.json", "thesis.txt"]


def test_held_out_rows_are_drawn_by_the_seed():
    rows, aside = hold_out(1000, 16, seed=0)
    assert len(aside) == 16 and sorted(rows + aside) == list(range(1000)) and rows == sorted(rows)
    assert max(aside) - min(aside) > 300  # not a block: files are often sorted
    assert hold_out(1000, 16, seed=0) == (rows, aside) != hold_out(1000, 16, seed=1)
    assert [len(hold_out(*given, seed=0)[1]) for given in ((40, 16), (9, 16), (1000, 0))] == [4, 0, 0]


def test_a_mistake_ends_the_program_with_one_line(circles, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments(tmp_path / "nowhere", circles, tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_dry_run_tells_and_writes_nothing(untrained, circles, tmp_path, capsys):
    call(
        *arguments(untrained, circles, tmp_path / "out", "--dry_run", "--max_train_steps", 500, "--train_batch_size", 8)
    )
    told = capsys.readouterr().out
    for line in (
        "learning_rate: 0.001",
        "samples: 44",
        "steps: 500 of 8 samples on 1 process(es)",
        "trained",
        "MiB",
    ):
        assert line in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("switch", ["--only_mid_control", "--unlock_decoder", "--gradient_checkpointing"])
def test_variants_run_and_save(untrained, circles, tmp_path, switch):
    run = tmp_path / "run"
    call(*arguments(untrained, circles, run, "--max_train_steps", 2, switch))
    assert list(losses(run)) == [1, 2]
    assert (run / "unet").exists() == (switch == "--unlock_decoder")


def test_resuming_takes_the_options_given_now(untrained, circles, tmp_path):
    """A lower rate is a lower rate, and another accumulation of the same product sees the same samples."""
    run, often = tmp_path / "run", ["--checkpointing_steps", 2, "--logging_steps", 1, "--use_ema"]
    pair = ["--train_batch_size", 2, "--gradient_accumulation_steps", 2, *often]
    call(*arguments(untrained, circles, run, "--max_train_steps", 2, *pair))
    straight = shutil.copytree(run, tmp_path / "straight")
    more = ["--max_train_steps", 4, "--resume_from_checkpoint", "latest"]
    call(*arguments(untrained, circles, straight, *more, *pair))
    split = ["--train_batch_size", 1, "--gradient_accumulation_steps", 4, *often]
    call(*arguments(untrained, circles, run, *more, *split))
    assert losses(run) == pytest.approx(losses(straight), rel=1e-4)
    slower = ["--max_train_steps", 6, "--learning_rate", 1e-5, "--resume_from_checkpoint", "latest"]
    call(*arguments(untrained, circles, run, *split, *slower))
    assert [row["lr"] for row in read_metrics(run) if "lr" in row] == [1e-3] * 4 + [1e-5] * 2


def test_a_copy_of_a_rounded_base_is_not_rounded(untrained, circles, tmp_path):
    """The frozen U-Net may be kept in bfloat16; what learns starts from the weights as they are on disk."""
    from diffusers_ext.diffusion.base import base_of, load_base
    from diffusers_ext.diffusion.files import BaseFiles

    options = parse(runpy.run_path(str(SCRIPT))["Options"], arguments(untrained, circles, tmp_path / "out"))
    files, half = BaseFiles.find(str(untrained)), load_base(str(untrained), torch.bfloat16)
    whole = load_base(str(untrained)).unet
    learns = start_controlnet(options, files, base_of(half), read_data(options).shown)
    expected, found = whole.state_dict(), learns.state_dict()
    copied = [name for name in found if name in expected]
    assert len(copied) > 50 and all(torch.equal(found[name], expected[name]) for name in copied)
    assert any(not torch.equal(half.unet.state_dict()[name].float(), expected[name]) for name in copied)


def test_a_resumed_average_lies_where_the_weights_do(tmp_path):
    """A checkpoint's average is read to the CPU; "meta" stands for a GPU here."""
    weights = [torch.nn.Parameter(torch.ones(2))]
    optimizer, average = torch.optim.AdamW(weights), EMAModel(weights)
    accelerator = SimpleNamespace(device=torch.device("meta"), load_state=lambda folder: None)
    schedule = get_scheduler("constant", optimizer)
    state = SimpleNamespace(accelerator=accelerator, optimizer=optimizer, schedule=schedule, average=average)
    (tmp_path / "manifest.json").write_text('{"step": 5}')
    assert State.restore(state, tmp_path) == 5
    assert [each.device.type for each in average.shadow_params] == ["meta"]


def test_an_unlocked_decoder_keeps_learning_from_a_cache(untrained, circles, tmp_path):
    """The first preview loads the encoders, and must not freeze the U-Net it is given."""
    from safetensors.torch import load_file

    more = [
        "--unlock_decoder",
        "--encoder_cache_dir",
        tmp_path / "cache",
        "--validation_steps",
        1,
        "--max_train_steps",
        3,
    ]
    call(*arguments(untrained, circles, tmp_path / "run", *more, "--checkpointing_steps", 1))
    name = "unet/diffusion_pytorch_model.safetensors"
    second, third = (load_file(tmp_path / f"run/checkpoint-{step}" / name) for step in (2, 3))
    changed = {key for key in second if not torch.equal(second[key], third[key])}
    assert changed and all(key.startswith(("up_blocks", "conv_norm_out", "conv_out")) for key in changed)
    assert (tmp_path / "run" / "best" / name).exists() and 'subfolder="unet"' in (
        tmp_path / "run" / "README.md"
    ).read_text()


def test_a_controlnet_of_another_base_is_refused(untrained, circles, tmp_path):
    from diffusers_ext import embedded_model
    from diffusers_ext.control.hint import new_controlnet
    from diffusers_ext.diffusion.base import load_base

    new_controlnet(load_base(embedded_model()).unet, 4).save_pretrained(tmp_path / "theirs")
    given = arguments(untrained, circles, tmp_path / "out", "--controlnet_model_name_or_path", tmp_path / "theirs")
    assert "they do not belong together" in refusal(*given)
    assert not (tmp_path / "out").exists()


def test_checkpointing_changes_memory_not_losses(untrained, circles, tmp_path):
    for name, switch in (("plain", "--no-gradient_checkpointing"), ("saving", "--gradient_checkpointing")):
        call(*arguments(untrained, circles, tmp_path / name, "--max_train_steps", 3, switch))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "saving"), rel=1e-5)


def test_a_controlnet_moves_to_another_base(untrained, circles, tmp_path):
    call(*arguments(untrained, circles, tmp_path / "first", "--max_train_steps", 1))
    moved = [
        "--controlnet_model_name_or_path",
        tmp_path / "first",
        "--transfer_from",
        untrained,
        "--max_train_steps",
        1,
    ]
    call(*arguments(untrained, circles, tmp_path / "second", *moved))
    assert (tmp_path / "second" / "README.md").exists()


def test_a_preview_that_fails_does_not_end_the_run(untrained, circles, tmp_path, monkeypatch):
    from diffusers_ext.control import previews

    def fail(self, step):
        raise RuntimeError("no space for pictures")

    monkeypatch.setattr(previews.ControlPreview, "__call__", fail)
    run = tmp_path / "run"
    call(*arguments(untrained, circles, run, "--max_train_steps", "2", "--validation_steps", "1"))
    assert list(losses(run)) == [1, 2] and (run / "diffusion_pytorch_model.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_run(untrained, circles, tmp_path, monkeypatch):
    from diffusers_ext.diffusion.noising import Diffusion

    monkeypatch.setattr(Diffusion, "loss", lambda self, a, b, t: (a - b).square().mean() * float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 1; lower --learning_rate"):
        call(*arguments(untrained, circles, tmp_path / "run", "--max_train_steps", "2", "--logging_steps", "1"))
