"""diffusers-ext: every subcommand is found, explains itself and answers at once."""

import dataclasses
import subprocess
import sys

import pytest

from diffusers_ext import cli

NAMES = sorted(path.stem for path in cli.COMMANDS.glob("*.py") if not path.stem.startswith("_"))


def call(*words: str) -> subprocess.CompletedProcess:
    program = "import sys; from diffusers_ext.cli import main; main(); assert 'torch' not in sys.modules"
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)


def test_the_overview_lists_every_command():
    done = call("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: diffusers-ext COMMAND")
    for name in NAMES:
        assert f"  {name.replace('_', '-')} " in done.stdout


def test_an_unknown_command_is_named():
    done = call("dance")
    assert done.returncode == 2 and "no command 'dance'" in done.stderr and "usage" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_each_command_explains_itself_without_loading_anything(name):
    module = __import__(f"diffusers_ext.commands.{name}", fromlist=["__doc__"])
    done = call(name.replace("_", "-"), "--help")
    assert done.returncode == 0, done.stderr
    assert f"diffusers-ext {name.replace('_', '-')}" in module.__doc__  # an example to paste
    if hasattr(module, "Options"):
        usage = done.stdout.split("\n\n")[0]
        places = [field.name for field in dataclasses.fields(module.Options) if field.metadata["positional"]]
        assert all(f"[{place.upper()}]" in usage for place in places)


def test_train_hands_its_words_to_the_script():
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_ext.cli", "train", "reward-model", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Train a reward model from rankings" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    (
        ("score", "a.png", "--reward", "fill50k", "--prompt", "x"),
        ("rerank", "--prompt", "x"),
        ("select-prompts", "--prompts", "prompts.txt", "--encoder", "encoder"),
    ),
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_read_or_written(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--device", "cuda:99"])
    assert end.value.code == 2 and "--device cuda:99: no such device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
