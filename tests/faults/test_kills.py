"""Fifty kills at random moments, and one in every kind of save: what is resumed ends byte for byte as if nothing had been.

A run is killed again and again on one folder, each time resumed from what the last kill left, until it comes to its end.
Half of the kills come before a random call on a file of the run or its cache, half after a random CPU time.
"""

import signal

import numpy as np
import pytest
from trainings import NAMES

KILLS = 10  # of each training
REACH = 0.6  # of an undisturbed run's calls and time: what is resumed has less before it, and is to be killed too
ENDS = (-signal.SIGKILL, -signal.SIGPROF)


@pytest.mark.parametrize("name", NAMES)
def test_kills_at_random_moments(name, trainings, undisturbed, start, same, tally, tmp_path):
    training, whole, draw = trainings[name], undisturbed(name), np.random.default_rng([2026, NAMES.index(name)])
    tally |= {"tried": KILLS, "survived": 0}
    kills, pending, work = 0, 0, tmp_path / "0"
    while kills < KILLS or pending:
        moment = REACH * draw.random()
        fault = f"planting.kill_at({str(work)!r}, {1 + int(moment * len(whole.calls))})"
        if kills % 2:
            fault = f"planting.kill_after({moment * whole.seconds})"
        done = start(training, work, fault=fault if kills < KILLS else "").wait()
        assert done.returncode in (0, *ENDS), f"after {kills} kills: {done.stderr[-3000:]}"
        if done.returncode == 0:
            same(training, work)
            tally["survived"] += pending
            pending, work = 0, tmp_path / str(kills)
        else:
            kills, pending = kills + 1, pending + 1


# What is being written, in the order of a run: a kill before the first call of that kind on a file of that name.
SAVES = {
    "controlnet": "options.json rename:.*options.json cache/texts.*partial cache/moments.*partial checkpoint-2.partial "
    "run/samples rename:run/.checkpoint-4 metrics.jsonl :run/config.json :run/loss.png :run/README.md",
    "reward_model": "cache/.*partial checkpoint-2.partial rename:run/.checkpoint-4 :run/best/ :run/config.json :run/README.md",
    "reward_tuning": "rename:run/.checkpoint-6 metrics.jsonl :run/rewards.png :run/README.md",
    "lads": "cache/.*partial checkpoint-fits/.*networks rename:.*checkpoint-fits/.probe results.json :run/README.md",
    "incremental": "protocol.json cache/.*partial session-2.partial rename:run/.session-3 rename:.*metrics.jsonl "
    "rename:run/.session-4 rename:.*baselines.jsonl :run/config.json :run/README.md",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kill_in_every_kind_of_save(name, trainings, undisturbed, start, same, tally, tmp_path):
    training = trainings[name]
    patterns = SAVES[name].split()
    tally |= {"tried": len(patterns), "survived": 0}
    for pattern in patterns:
        done = start(training, tmp_path, fault=f"planting.kill_at({str(tmp_path)!r}, 1, {pattern!r})").wait()
        assert done.returncode == -signal.SIGKILL, f"{pattern}: {done.returncode} {done.stderr[-3000:]}"
    done = start(training, tmp_path).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    same(training, tmp_path)
    tally["survived"] = len(patterns)
