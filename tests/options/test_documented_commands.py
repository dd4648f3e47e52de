"""Every command that README, docs, docstrings and presets print is taken as it stands: ranges and dependencies too."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from option_programs import ROOT, programs

from diffusers_ext.options import parse

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [
    path for folder in ("training", "diffusers_ext", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
]
STARTS = ("accelerate launch", "python -m", "python training/", "diffusers-ext ", "torchrun ")


def printed(path: Path) -> list[str]:
    """The command lines of a page's blocks or of a module's docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        text = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.S | re.M))
    lines = re.sub(r"\\\s*\n\s*", " ", text).splitlines()
    return [line.strip() for line in lines if line.strip().removeprefix("$ ").startswith(STARTS)]


def program_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The program that a command line starts, and the words that are its own."""
    known = programs()
    for place, word in enumerate(words):
        name = f"training/{Path(word).name}"
        if word.endswith(".py") and name in known:
            return name, words[place + 1 :]
    if words[:2] == ["python", "-m"]:
        name, rest = f"-m {words[2]}", words[3:]
        rest = ["--image", *rest] if "conditions" in name and rest and not rest[0].startswith("-") else rest
        return (name, rest) if name in known else None
    name = " ".join(words[:2])
    if words[:2] == ["diffusers-ext", "train"]:
        name = next(
            (
                f"training/train_{word.replace('-', '_')}.py"
                for word in words[2:]
                if f"training/train_{word.replace('-', '_')}.py" in known
            ),
            "",
        )
        start = name.removeprefix("training/train_").removesuffix(".py")
        rest = words[2 + [word.replace("-", "_") for word in words[2:]].index(start) + 1 :] if name else []
        return (name, rest) if name else None
    return (name, words[2:]) if name in known else None


COMMANDS = sorted({line for path in (*PAGES, *MODULES) for line in printed(path)})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_is_taken(command):
    words = shlex.split(command.removeprefix("$ "), comments=True)
    found = program_of(words)
    if found is None:
        pytest.skip("no program that takes options")
    name, rest = found
    ends = [place for place, word in enumerate(rest) if word in ("|", "&&", ">", ";", "...") or word.startswith("#")]
    rest = rest[: ends[0]] if ends else rest
    if not {"--help", "-h"} & {*rest}:
        parse(programs()[name], [str(ROOT / word) if "presets/" in word else word for word in rest])


def test_commands_are_found():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(
    "preset, script, more",
    [
        ("refl_official", "train_reward_tuning", ["--pretrain_data_dir", "pictures"]),
        ("lads_balanced", "train_lads", []),
    ],
)
def test_a_preset_is_taken(preset, script, more):
    path = ROOT / "training" / "presets" / f"{preset}.json"
    parse(programs()[f"training/{script}.py"], ["--config", str(path), *more])


def test_every_preset_is_tried():
    assert {path.stem for path in (ROOT / "training" / "presets").iterdir()} == {"refl_official", "lads_balanced"}
