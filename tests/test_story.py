"""The story of `make story`: it walks, stops and goes on; and a tiny one runs whole, in this process where it can."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_ext import cli
from diffusers_ext.options import parse

ROOT = Path(__file__).parents[1]
STORY = ROOT / "examples" / "story"
sys.path.insert(0, str(STORY))

from steps import FULL, QUICK, story  # noqa: E402
from walk import Step, online, read_records, run_process, walk  # noqa: E402


def in_process(command: str, variables: dict) -> None:
    """Run a command's main here: starting Python and importing torch is most of what a tiny command takes."""
    words = shlex.split(command)
    if variables and "--source here" not in command:
        return apart(words, variables)
    if words[0] == "diffusers-ext":
        return cli.main(words[1:])
    if words[1] == "-m":
        return module(words[2], words[3:])
    made = runpy.run_path(words[2] if words[0] == "accelerate" else words[1], run_name="story")
    made["main"](parse(made["Options"], words[3:] if words[0] == "accelerate" else words[2:]))


def apart(words: list[str], variables: dict) -> None:
    """The Hub's address is read when its client is imported, so what speaks to it needs a process."""
    program = ["-m", "diffusers_ext.cli"] if words[0] == "diffusers-ext" else words[1:2]
    rest = words[1:] if words[0] == "diffusers-ext" else words[2:]
    subprocess.run([sys.executable, *program, *rest], env={**os.environ, **variables}, check=True)


def module(name: str, arguments: list[str]) -> None:
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder of a tiny story, run in a folder that looks like the repository."""
    place = tmp_path_factory.mktemp("story")
    for name in ("training", "examples", "pipelines"):
        (place / name).symlink_to(ROOT / name)
    before = Path.cwd()
    os.chdir(place)
    folder = Path("runs/story")
    try:
        walk(folder, steps_of(folder), in_process)
        yield folder.resolve()
    finally:
        os.chdir(before)


def steps_of(folder: Path) -> list[Step]:
    """The steps with the folder named as it is from here."""
    placed = str(folder.resolve())
    return [
        Step(step.name, step.title, tuple(command.replace(placed, str(folder)) for command in step.commands), step.online)
        for step in story(folder, QUICK)
    ]


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
    assert variables["HF_TOKEN"] == "" and Path(variables["HF_HOME"]).is_relative_to(tmp_path)
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
