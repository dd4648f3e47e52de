"""What comes from outside: an order to end, a second run, clocks that run back, places where words are bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fork_server import FEW_STEPS, ROOT, environment
from PIL import Image

from diffusers_ext.engine.run_folder import read_metrics

WORKERS = ("--dataloader_num_workers", 2)


def test_sigterm_saves_the_step_and_ends(trainings, undisturbed, start, same, tmp_path):
    """To the whole group, data workers too, between two checkpoints: a checkpoint of that step, one line, code 143."""
    training = trainings["controlnet"]
    fault = f"planting.kill_at({str(tmp_path)!r}, 1, 'samples', planting.signal.SIGTERM, group=True)"
    more = ("--checkpointing_steps", 100, "--validation_steps", 3, *WORKERS)
    done = start(training, tmp_path, *more, fault=fault).wait()
    assert done.returncode == 128 + signal.SIGTERM and "Traceback" not in done.stderr, done.stderr[-3000:]
    (saved,) = (tmp_path / "run").glob("checkpoint-*")
    assert f"SIGTERM: step {saved.name[11:]} is saved" in done.stdout and saved.name in ("checkpoint-3", "checkpoint-4")
    done = start(training, tmp_path).wait()
    assert done.returncode == 0 and f"resuming from {saved}" in done.stdout, done.stderr[-3000:]
    same(training, tmp_path)


def test_sigterm_on_two_ranks(trainings, start, tmp_path):
    """They agree on a step, the next that is logged or drawn, and all save it."""
    fault = f"planting.kill_at({str(tmp_path)!r}, 2, 'checkpoint-2', planting.signal.SIGTERM, group=True)"
    done = start(trainings["reward_model"], tmp_path, fault=fault, processes=2).wait()
    assert done.returncode == 128 + signal.SIGTERM and "SIGTERM: step 3 is saved" in done.stdout, done.stderr[-3000:]
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3]
    done = start(trainings["reward_model"], tmp_path, processes=2).wait()
    assert done.returncode == 0 and "checkpoint-3" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("name", ("lads", "incremental"))
def test_sigterm_where_saving_is_frequent(name, trainings, start, same, tmp_path):
    """These keep every epoch or session, and end at once."""
    place = {"lads": "checkpoint-fits/.*probe", "incremental": "session-3$"}[name]
    fault = f"planting.kill_at({str(tmp_path)!r}, 1, {place!r}, planting.signal.SIGTERM)"
    assert start(trainings[name], tmp_path, fault=fault).wait().returncode == -signal.SIGTERM
    assert start(trainings[name], tmp_path).wait().returncode == 0
    same(trainings[name], tmp_path)


@pytest.mark.parametrize("name", ("reward_model", "lads", "incremental"))
def test_a_second_run_on_a_folder_is_refused(name, trainings, start, same, tmp_path):
    """While the first is stopped in the middle of its work; afterwards that one ends as if nothing had been."""
    fault = f"planting.kill_at({str(tmp_path)!r}, 1, 'checkpoint|session', planting.signal.SIGSTOP)"
    first, until = start(trainings[name], tmp_path, fault=fault), time.monotonic() + 300
    while not stopped(first.pid):
        assert first.poll(0.05) is None and time.monotonic() < until
    second = start(trainings[name], tmp_path).wait()
    assert second.returncode == 2 and f"another run writes there, process {first.pid} on" in second.stderr, (
        second.stderr
    )
    assert "Traceback" not in second.stderr
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait().returncode == 0
    same(trainings[name], tmp_path)


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def test_of_two_runs_that_start_together_one_remains(trainings, start, same, tmp_path):
    runs = [start(trainings["lads"], tmp_path) for _ in range(2)]
    ends = [run.wait() for run in runs]
    assert sorted(end.returncode for end in ends) == [0, 2], [end.stderr[-2000:] for end in ends]
    same(trainings["lads"], tmp_path)


@pytest.mark.parametrize("name", ("reward_model", "incremental"))
def test_a_clock_that_runs_backwards(name, trainings, start, same, tmp_path):
    done = start(trainings[name], tmp_path, fault="planting.turn_back_clocks()").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    same(trainings[name], tmp_path)


def test_captions_of_all_scripts_where_the_locale_knows_ascii_only(circles, untrained, tmp_path):
    """A new Python without its UTF-8 mode: files are read and written as UTF-8 whatever the locale, and nothing is printed
    that cannot be."""
    (tmp_path / "data").mkdir()
    rows = []
    for number, text in enumerate(("красный круг", "赤い円", "cercle rouge à fond bleu", "🔴 on blue")):
        for kind in ("image", "condition"):
            Image.effect_noise((32, 32), 40 + number).convert("RGB").save(tmp_path / f"data/{kind}{number}.png")
        files = {"file_name": f"image{number}.png", "conditioning_image_file_name": f"condition{number}.png"}
        rows.append(json.dumps({**files, "text": text}, ensure_ascii=False))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    words = ["--pretrained_model_name_or_path", untrained, "--train_data_dir", tmp_path / "data", "--resolution", 32]
    words += ["--max_train_steps", 1, "--train_batch_size", 1, "--validation_steps", 9, "--num_validation_images", 1]
    words += ["--held_out_samples", 0, "--output_dir", tmp_path / "run", "--encoder_cache_dir", tmp_path / "cache"]
    bytes_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}
    code = f"{FEW_STEPS}; import runpy; runpy.run_path('training/train_controlnet.py', run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env={**environment(), **bytes_only}, cwd=ROOT, capture_output=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:].decode(errors="replace")
    assert (tmp_path / "run" / "README.md").exists() and len(read_metrics(tmp_path / "run")) >= 1
