"""The story of `make story`: it walks, stops and goes on; and a tiny one runs whole."""

import json
import re
import runpy
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import environment
from fork_server import ForkServer

from diffusers_ext import cli
from diffusers_ext.options import parse

ROOT = Path(__file__).parents[1]
STORY = ROOT / "examples" / "story"
sys.path.append(str(STORY))

from steps import FULL, QUICK, story  # noqa: E402
from walk import Step, online, read_records, run_process, walk  # noqa: E402

pytestmark = pytest.mark.timeout(1800)  # some thirty commands: a minute on a quiet core, ten on a crowded one
MAIN = "from diffusers_ext.cli import main; main()"
MODULE = "import runpy, sys; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


class Forked:
    """Runs a story's commands in processes that have imported torch already; see fork_server.py."""

    def __init__(self, server: ForkServer, place: Path):
        self.server, self.place, self.online = server, place, None

    def __call__(self, command: str, variables: dict) -> None:
        words = shlex.split(command)
        if words[0] == "diffusers-ext":
            words = ["-c", MAIN, *words[1:]]
        elif words[1] == "-m":
            words = ["-c", MODULE.format(words[2]), *words[3:]]
        else:
            words = words[2:] if words[0] == "accelerate" else words[1:]
        done = self.for_(variables).start(*words, env={**environment(), **variables}, cwd=self.place).wait()
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"

    def for_(self, variables: dict) -> ForkServer:
        """The server to fork from: the Hub's address is read when its client is imported."""
        if variables and self.online is None:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value)
                self.online = ForkServer()
        return self.online if variables else self.server


@pytest.fixture(scope="module")
def told(tmp_path_factory, fork_server):
    """The folder of a tiny story, run in a folder that looks like the repository."""
    place = tmp_path_factory.mktemp("story")
    for name in ("training", "examples", "pipelines"):
        (place / name).symlink_to(ROOT / name)
    folder, forked = place / "runs" / "story", Forked(fork_server, place)
    named = [
        replace(step, commands=tuple(each.replace(str(folder), "runs/story") for each in step.commands))
        for step in story(folder, QUICK)
    ]
    walk(folder, named, forked)
    forked.online.__exit__()
    return folder


# ---------------------------------------------------------------- walking


def test_a_walk_goes_on_where_it_stopped(tmp_path):
    calls = []

    def call(command: str, variables: dict) -> None:
        calls.append(command)
        if calls.count("b") == 1 and command == "b":
            raise KeyboardInterrupt

    steps = [Step("first", "", ("a", "b")), Step("second", "", ("c",))]
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path, steps, call)
    walk(tmp_path, steps, call)
    walk(tmp_path, steps, call)
    assert calls == ["a", "b", "b", "c"]
    assert [(row["command"], row["done"]) for row in read_records(tmp_path)] == [
        ("a", True),
        ("b", False),
        ("b", True),
        ("c", True),
    ]


def test_a_command_that_fails_ends_the_walk(tmp_path):
    command = shlex.join([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit) as stopped:
        walk(tmp_path, [Step("fails", "", (command,)), Step("never", "", ("no-such-command",))], run_process)
    assert stopped.value.code == 3 and [row["done"] for row in read_records(tmp_path)] == [False]


def test_the_hub_of_a_story_is_nobody_elses(tmp_path):
    variables = online(tmp_path, "http://127.0.0.1:1")
    assert variables["HF_TOKEN"] == "hf_story" and Path(variables["HF_HOME"]).is_relative_to(tmp_path)
    seen = []
    walk(tmp_path, [Step("asks", "", ("x",), online=True)], lambda _, given: seen.append(given["HF_ENDPOINT"]))
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", seen[0])


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_every_command_parses(size, tmp_path):
    for command in (command for step in story(tmp_path, size) for command in step.commands):
        words = shlex.split(command)
        if words[0] == "accelerate":
            made = runpy.run_path(str(ROOT / words[2]), run_name="story")
            parse(made["Options"], words[3:])
        elif words[0] == "diffusers-ext":
            assert (cli.COMMANDS / f"{words[1].replace('-', '_')}.py").exists()
        else:
            assert words[1] == "-m" or (ROOT / words[1]).exists()


# ---------------------------------------------------------------- a tiny story


def test_every_step_is_done_once(told):
    records = read_records(told)
    assert all(row["done"] for row in records)
    assert len(records) == sum(len(step.commands) for step in story(told, QUICK))


def test_what_the_hub_gave_is_what_lies_here(told):
    here, hub = (json.loads((told / f"{name}.json").read_text()) for name in ("here", "hub"))
    assert here == hub and len(here) > 6


def test_the_report_holds_all_it_shows(told):
    page = (told / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "Not run yet" not in page and page.count("data:image/png") > 8
    for row in read_records(told)[:-1]:
        assert row["command"].split()[-1] in page
