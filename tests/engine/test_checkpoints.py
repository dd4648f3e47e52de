"""Checkpoints are whole or passed over."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusers_ext.engine import checkpoints
from diffusers_ext.errors import InputError


@pytest.fixture
def run_folder(tmp_path):
    """Checkpoints 10, 20 and 30, sealed as `save` seals them, beside folders of other origins."""
    for step in (10, 20, 30):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "controlnet").mkdir(parents=True)
        (folder / "controlnet" / "weights.bin").write_bytes(bytes(range(step)))
        checkpoints.seal(folder, step)
    for name in ("checkpoint-old", "checkpoint-final", ".checkpoint-40.partial", "checkpoint-100x"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_latest_is_the_newest_whole_one(run_folder):
    assert checkpoints.find("latest", run_folder) == run_folder / "checkpoint-30"
    assert checkpoints.step_of(run_folder / "checkpoint-30") == 30
    assert checkpoints.find(None, run_folder) is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "has 29 bytes instead of 30"),
        (flip, "changed or damaged"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(run_folder, harm, message):
    harm(run_folder / "checkpoint-30/controlnet/weights.bin")
    assert message in checkpoints.damage(run_folder / "checkpoint-30")
    assert checkpoints.find("latest", run_folder) == run_folder / "checkpoint-20"
    with pytest.raises(InputError, match=r"weights\.bin"):
        checkpoints.find(str(run_folder / "checkpoint-30"), run_folder)


def test_an_unsealed_checkpoint_does_not_count(run_folder):
    (run_folder / "checkpoint-30" / checkpoints.MANIFEST).unlink()
    assert checkpoints.find("latest", run_folder) == run_folder / "checkpoint-20"


def test_nothing_to_resume_starts_afresh(tmp_path):
    assert checkpoints.find("latest", tmp_path) is None
    with pytest.raises(InputError, match="give a checkpoint-N folder"):
        checkpoints.find(str(tmp_path / "checkpoint-5"), tmp_path)


@pytest.mark.parametrize("name", ("checkpoint-20", "checkpoint-20/", "./checkpoint-20"))
def test_a_checkpoint_is_found_by_its_name_in_the_run_folder(run_folder, name):
    assert checkpoints.find(name, run_folder) == run_folder / "checkpoint-20"


@pytest.mark.parametrize("name", ("checkpoint-99", "checkpoint-2", "somewhere/checkpoint-20"))
def test_a_checkpoint_that_is_not_there_is_told_with_those_that_are(run_folder, name):
    with pytest.raises(InputError, match=f"{name}: there is no such folder; .* has checkpoint-10, checkpoint-20"):
        checkpoints.find(name, run_folder)
    with pytest.raises(InputError, match="has no checkpoint; give a checkpoint-N folder"):
        checkpoints.find(name, run_folder / "elsewhere")


def test_later_checkpoints_neither_count_nor_go(run_folder):
    """After resuming from 20 past a damaged 30, saving 25 with a limit of 1 must not leave the damaged one alone."""
    truncate(run_folder / "checkpoint-30/controlnet/weights.bin")
    checkpoints.set_aside(run_folder, 20)
    assert not (run_folder / "checkpoint-30").exists() and list(run_folder.glob("abandoned-checkpoint-30-*"))
    accelerator = SimpleNamespace(
        is_main_process=True,
        wait_for_everyone=lambda: None,
        save_state=lambda folder: Path(folder, "state").write_text("x"),
    )
    checkpoints.save(accelerator, run_folder, 25, limit=1)
    assert checkpoints.find("latest", run_folder) == run_folder / "checkpoint-25"
    assert not (run_folder / "checkpoint-20").exists()


def test_the_manifest_lists_every_file(run_folder):
    manifest = json.loads((run_folder / "checkpoint-20" / checkpoints.MANIFEST).read_text())
    assert list(manifest["files"]) == ["controlnet/weights.bin"] and manifest["step"] == 20
