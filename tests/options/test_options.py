"""Dataclasses as command lines."""

import ast
import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffusers_ext.errors import InputError
from diffusers_ext.options import RunOptions, TrainingOptions, as_dict, check_used, command_line, option, parse, run

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "training").glob("train_*.py"))


@dataclass
class Options(TrainingOptions):
    names: list[str] | None = option(None, "some names")
    mode: str = option("fast", "how, 100 % of the time", ("fast", "slow"))


def refusal(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(Options, list(argv))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_defaults_and_both_spellings():
    assert parse(Options, []) == Options()
    given = parse(Options, ["--train-batch-size", "8", "--learning_rate=1e-3", "--use-ema", "--names", "a", "b"])
    assert (given.train_batch_size, given.learning_rate, given.use_ema, given.names) == (8, 1e-3, True, ["a", "b"])
    assert parse(Options, ["--use_ema", "--no-use_ema"]).use_ema is False


def test_command_line_wins_over_config(tmp_path):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"train_batch_size": 2, "learning_rate": 1, "seed": 5}))
    given = parse(Options, ["--config", str(config), "--seed", "7"])
    assert (given.train_batch_size, given.learning_rate, given.seed) == (2, 1.0, 7)


def test_options_json_of_a_run_is_a_config(tmp_path):
    config = tmp_path / "options.json"
    wanted = dataclasses.replace(Options(), mode="slow", names=["x"])
    config.write_text(json.dumps({"command": "…", "options": as_dict(wanted), "versions": {}}))
    assert parse(Options, ["--config", str(config)]) == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, "unknown option sed"),
        ({"seed": "1"}, "seed must be int, got '1'"),
        ({"use_ema": 1}, "use_ema must be bool"),
        ({"mode": "odd"}, "mode must be one of fast, slow"),
        ({"names": "a"}, "names must be a list"),
        ([1], "expected a JSON object"),
    ],
)
def test_config_mistakes_are_named(tmp_path, capsys, values, message):
    config = tmp_path / "run.json"
    config.write_text(json.dumps(values))
    error = refusal(capsys, "--config", str(config))
    assert message in error and str(config) in error


def test_command_line_mistakes_end_with_one_line(capsys):
    assert "unrecognized arguments: --learning_rat" in refusal(capsys, "--learning_rat", "1")
    assert "invalid choice: 'odd'" in refusal(capsys, "--mode", "odd")


def test_input_errors_need_no_traceback(capsys, monkeypatch):
    def main(options):
        raise InputError("data.jsonl:3: no caption; add one")

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stopped:
        run(main, Options)
    assert stopped.value.code == 2 and capsys.readouterr().err == "error: data.jsonl:3: no caption; add one\n"


@pytest.mark.parametrize(
    "given, found, message",
    [
        ({"mode": "slow", "ema_decay": 0.9}, {}, "--ema_decay is for --use_ema, without which nothing reads it"),
        (
            {"mode": "slow", "names": ["a"]},
            {},
            "--names is for --mode fast or steady; slow would ignore it: leave it out",
        ),
        ({"names": ["a"]}, {"mode": "slow"}, "slow would ignore it"),
        ({"mode": "slow", "use_ema": True, "ema_decay": 0.9}, {}, None),
        ({"mode": "slow", "ema_decay": 0.9999, "names": None}, {}, None),  # their defaults
        ({"names": ["a"]}, {}, None),
        ({"mode": "slow", "names": ["a"]}, {"mode": "steady"}, None),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(given, found, message):
    used_by = {"ema_decay": {"use_ema": True}, "names": {"mode": ("fast", "steady")}}
    refused = pytest.raises(InputError, match=message) if message else contextlib.nullcontext()
    with refused:
        check_used(Options(**given), used_by, **found)


def test_secrets_are_not_recorded(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/x/train_controlnet.py", "--hub_token", "hf_a", "--hub-token=hf_b", "--seed", "1"]
    )
    assert (
        command_line() == "accelerate launch training/train_controlnet.py --hub_token '***' '--hub-token=***' --seed 1"
    )
    assert "hub_token" not in as_dict(Options(hub_token="hf_a"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_is_complete_and_loads_nothing_heavy(script):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in loaded and not loaded & {"torch", "numpy", "diffusers", "accelerate"}
    assert "accelerate launch training/" in done.stdout and "--resume_from_checkpoint" in done.stdout


def declared(code: str) -> set[str]:
    """The names of a module's options: class fields that are declared with `option(...)`."""
    fields = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.AnnAssign)]
    called = [field for field in fields if isinstance(field.value, ast.Call)]
    return {field.target.id for field in called if getattr(field.value.func, "id", "") == "option"}


def read(code: str) -> set[str]:
    """The names that a module reads as options.x, self.options.x or given.x: not in a loop over names, not in a text."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    owners = [(node, getattr(node.value, "id", getattr(node.value, "attr", ""))) for node in nodes]
    return {node.attr for node, owner in owners if owner in ("options", "given") and isinstance(node.ctx, ast.Load)}


def unread(program: str, library: list[str]) -> set[str]:
    """Options that neither a program nor the library that it stands on reads.

    Of the library's own dataclasses those count that the program names; the rest belong to other programs.
    """
    inherited, own = set(), {node.name for node in ast.parse(program).body if isinstance(node, ast.ClassDef)}
    for node in [node for code in library for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]:
        if node.name not in own and re.search(rf"\b{node.name}\b", program):
            inherited |= declared(ast.unparse(node))
    return (declared(program) | inherited) - set().union(read(program), *map(read, library))


MODULES = [*SCRIPTS, *sorted((ROOT / "diffusers_ext").rglob("*.py"))]
PROGRAMS = [path for path in MODULES if "class Options(" in path.read_text() or "class Options:" in path.read_text()]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_option_is_read_somewhere(program):
    library = [path.read_text() for path in MODULES if path not in PROGRAMS]
    assert not unread(program.read_text(), library)


def test_an_option_that_nothing_reads_is_found():
    library = ["class RunOptions:\n    seed: int = option(0, '')\n    pace: int = option(0, '')", "options.seed"]
    program = """
class Options(RunOptions):
    used: int = option(1, "")
    forgotten: int = option(1, "options.forgotten")

options.used, options.__dict__["forgotten"]
"""
    assert unread(program, library) == {"forgotten", "pace"}
    assert unread(program + "self.options.pace\noptions.forgotten", library) == set()
    assert unread(program + "options.forgotten = 2\noptions.pace", library) == {"forgotten"}


@pytest.mark.parametrize(("rank", "waits"), [(None, []), ("0", []), ("1", [10]), ("7", [10])])
def test_the_first_process_of_a_machine_says_what_is_wrong(capsys, monkeypatch, rank, waits):
    """The others wait, so that the launcher ends them before they repeat it, and still say what they alone meet."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)

    def fail(options):
        raise InputError("0.png: missing")

    with pytest.raises(SystemExit):
        run(fail, Options, [])
    assert slept == waits and capsys.readouterr().err == "error: 0.png: missing\n"


def test_a_loss_that_is_not_finite_is_one_line(capsys):
    def diverge(options):
        raise FloatingPointError("loss is nan at step 3; lower --learning_rate")

    with pytest.raises(SystemExit) as ended:
        run(diverge, RunOptions, [])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: loss is nan at step 3; lower --learning_rate\n"
