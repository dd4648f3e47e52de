"""What a resumed run may change, what it may not, and that a refusal leaves the run folder as it was."""

import json
import shutil
from pathlib import Path

import pytest
from fork_server import environment
from PIL import Image

from diffusers_ext.engine import provenance
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse
from diffusers_ext.training.train_controlnet import Options, main

SCRIPT = "training/train_controlnet.py"


def arguments(untrained, data, run, *more) -> list[str]:
    common = ["--resolution", 32, "--max_train_steps", 2, "--train_batch_size", 2, "--num_validation_images", 1]
    common += [
        "--validation_steps",
        100,
        "--checkpointing_steps",
        1,
        "--max_train_samples",
        12,
        "--held_out_samples",
        1,
    ]
    words = [
        "--pretrained_model_name_or_path",
        untrained,
        "--train_data_dir",
        data,
        "--output_dir",
        run,
        *common,
        *more,
    ]
    return [str(word) for word in words]


def train(*given) -> None:
    main(parse(Options, arguments(*given)))


@pytest.fixture(scope="module")
def finished(untrained, circles, tmp_path_factory):
    from diffusers_ext.control import previews

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(previews, "STEPS", 2)
        folder = tmp_path_factory.mktemp("resume") / "run"
        train(untrained, circles, folder)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    from diffusers_ext.control import previews

    monkeypatch.setattr(previews, "STEPS", 2)
    return Path(shutil.copytree(finished, tmp_path / "run"))


REFUSED = {
    "seed": (["--seed", 7], "--seed was 0, now 7"),
    "an average": (["--use_ema"], "--use_ema was false, now true"),
    "adapters": (["--lora_rank", 2], "--lora_rank was null, now 2"),
    "blocks": (["--controlnet_blocks", 1], "--controlnet_blocks was null, now 1"),
    "rows held out": (["--held_out_samples", 0], "--held_out_samples was 1, now 0"),
    "fewer rows": (["--max_train_samples", 11], "data: "),
    "the loss": (["--snr_gamma", 5], "--snr_gamma was null, now 5.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_resume_names_what_differs_and_writes_nothing(untrained, circles, run, name):
    more, message = REFUSED[name]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InputError, match="of other data or options") as refused:
        train(untrained, circles, run, "--max_train_steps", 3, "--resume_from_checkpoint", "latest", *more)
    assert message in str(refused.value) and "--controlnet_model_name_or_path" in str(refused.value)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_moved_data_resume_and_changed_data_do_not(untrained, circles, run, tmp_path, capsys):
    moved = shutil.copytree(circles, tmp_path / "moved")
    more = (
        "--max_train_steps",
        3,
        "--resume_from_checkpoint",
        "checkpoint-2",
        "--logging_steps",
        1,
        "--learning_rate",
        1e-4,
    )
    train(untrained, moved, run, *more)
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [1, 2, 3]
    assert "note: from here on --learning_rate was 5e-06, now 0.0001" in capsys.readouterr().out
    rows = (moved / "metadata.jsonl").read_text().splitlines()
    picture = moved / json.loads(rows[0])["file_name"]
    Image.new("RGB", Image.open(picture).size, "red").save(picture)
    with pytest.raises(InputError, match=r"data: .*moved"):
        train(untrained, moved, run, *more, "--max_train_steps", 4)


def test_a_run_that_is_done_says_that_nothing_is_left(untrained, circles, run, capsys):
    for steps in (1, 2):  # fewer than were taken, and as many
        train(untrained, circles, run, "--resume_from_checkpoint", "latest", "--max_train_steps", steps)
        assert f"step 2 of {steps} is done already: nothing is left to train" in capsys.readouterr().out


def test_another_base_is_refused_and_a_moved_one_is_not(untrained, circles, run, tmp_path):
    moved = shutil.copytree(untrained, tmp_path / "moved")
    more = ("--max_train_steps", 3, "--resume_from_checkpoint", "latest")
    train(moved, circles, run, *more)
    config = json.loads((moved / "scheduler/scheduler_config.json").read_text())
    (moved / "scheduler/scheduler_config.json").write_text(json.dumps({**config, "beta_end": 0.02}))
    with pytest.raises(InputError, match=r"base: .*moved"):
        train(moved, circles, run, *more, "--max_train_steps", 4)


def test_a_run_of_an_earlier_version_resumes_with_a_note(untrained, circles, run, capsys):
    record = json.loads((run / "options.json").read_text())
    del record["sources"]
    (run / "options.json").write_text(json.dumps(record))
    for checkpoint in run.glob("checkpoint-*"):  # as it was sealed then
        (checkpoint / "options.json").unlink()
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        del manifest["files"]["options.json"]
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="--seed was 0, now 3"):
        train(untrained, circles, run, "--resume_from_checkpoint", "latest", "--seed", 3)
    train(untrained, circles, run, "--resume_from_checkpoint", "latest", "--max_train_steps", 3)
    assert "is of an earlier version" in capsys.readouterr().out


def test_two_processes_refuse_together_and_once(fork_server, untrained, circles, run):
    more = ("--resume_from_checkpoint", "latest", "--max_train_steps", 3, "--seed", 7)
    given = arguments(untrained, circles, run, *more)
    before = (run / "options.json").read_bytes()
    done = fork_server.start(SCRIPT, *given, processes=2, env=environment()).wait()
    assert done.returncode == 2 and done.stderr.count("--seed was 0, now 7") == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and (run / "options.json").read_bytes() == before


def test_large_files_are_told_apart_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "BLOCK", 4)
    monkeypatch.setattr(provenance, "BLOCKS", 4)
    path, digests = tmp_path / "w.safetensors", []
    for content in (bytes(100), bytes(99) + b"x", b"x" + bytes(99), bytes(101)):
        path.write_bytes(content)
        digests.append(provenance._blocks(path))
    assert len(set(digests)) == 4


def test_an_own_reward_is_its_code():
    import torch

    from diffusers_ext.rewards.interface import OwnReward

    def bright(prompts, images):
        return torch.stack([image.mean() for image in images])

    def dark(prompts, images):
        return torch.stack([-image.mean() for image in images])

    first, again, other = (provenance.digest_of_reward(OwnReward(f), "mine:reward") for f in (bright, bright, dark))
    assert first == again != other


def test_every_option_named_here_exists():
    """And a new one that is not named is refused, which is the safe side."""
    import dataclasses
    import importlib

    names = ("controlnet", "control_reward", "reward_model", "reward_tuning", "lads", "incremental", "image_text")
    scripts = [
        importlib.import_module(f"diffusers_ext.training.train_{name}") for name in (*names, "tiny_text_to_image")
    ]
    known = {field.name for script in scripts for field in dataclasses.fields(script.Options)}
    assert known >= provenance.INCIDENTAL | provenance.ADJUSTABLE | provenance.NAMES
    assert not provenance.INCIDENTAL & provenance.ADJUSTABLE and not provenance.NAMES & provenance.INCIDENTAL
