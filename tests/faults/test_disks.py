"""A disk that is full, read-only or lies: a run says so and ends, what it had saved stays whole, and it goes on afterwards."""

import errno
import os
import shutil

import numpy as np
import planting
import pytest
from trainings import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_fills_up(name, trainings, undisturbed, start, same, tmp_path):
    """From a random call on, every write fails: of Python with ENOSPC, of other code by the limit on the size of files."""
    calls = undisturbed(name).calls
    number = int(np.random.default_rng([7, NAMES.index(name)]).integers(10, len(calls) // 3))
    fault = f"planting.fail_from({str(tmp_path)!r}, {number}, {errno.ENOSPC})"
    done = start(trainings[name], tmp_path, fault=fault).wait()
    assert done.returncode in (1, 2) and os.strerror(errno.ENOSPC) in done.stderr, done.stderr[-3000:]
    done = start(trainings[name], tmp_path).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    same(trainings[name], tmp_path)


@pytest.mark.parametrize("name", ("controlnet", "lads", "incremental"))
def test_a_place_that_cannot_be_written_is_refused_before_any_work(name, trainings, start, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    done = start(trainings[name], tmp_path / "closed" / "more", fault="planting.obey_permissions()").wait()
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "closed").iterdir())


SCARRED = {  # files of the newest checkpoint, and shards of the cache
    "controlnet": ("run/checkpoint-6/optimizer.bin", "cache/moments-*/*.safetensors"),
    "reward_model": ("run/checkpoint-6/**/model.safetensors", "cache/*/*.safetensors"),
    "reward_tuning": ("run/checkpoint-6/**/*.safetensors", "cache/*/*.safetensors"),
    "lads": ("run/checkpoint-fits/*.safetensors", "run/cache/*/*.safetensors"),
    "incremental": ("run/session-4/*.safetensors", "run/cache/*/*.safetensors"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_that_changed_on_disk_is_found(name, trainings, undisturbed, start, same, tally, tmp_path):
    """In the newest checkpoint and in the cache: what is damaged is named, and made again from what is whole."""
    work = shutil.copytree(undisturbed(name).work, tmp_path / "work")
    (work / "run" / trainings[name].results[0]).unlink()
    scarred = [path for pattern in SCARRED[name] for path in work.glob(pattern)]
    assert len(scarred) >= 2
    tally |= {"tried": len(scarred), "survived": 0}
    for path in scarred:
        planting.scar(path)
    done = start(trainings[name], work).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert ("passing over" in said or name == "incremental") and "damaged; removed" in said
    same(trainings[name], work)
    tally["survived"] = len(scarred)
