"""README and docs say what is so: their code runs, their commands parse, their files exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [text for name, text in fenced if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readmes_code_runs(tmp_path):
    (code,) = blocks(ROOT / "README.md", "python")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "circle.png").stat().st_size > 500


def commands() -> list[str]:
    text = "".join(block for page in PAGES for block in blocks(page, "bash"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("accelerate launch")]


@pytest.mark.parametrize("command", commands())
def test_the_documents_commands_parse(command):
    words = shlex.split(command)
    script = next(position for position, word in enumerate(words) if word.endswith(".py"))
    call = [sys.executable, ROOT / words[script], *words[script + 1 :], "--help"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_map_is_true():
    """Every file that the README's map names exists, and every module is on it, by itself or with its folder."""
    (tree,) = [block for block in blocks(ROOT / "README.md", "") if block.startswith("training/")]
    named = {Path(name).name for name in re.findall(r"[\w/]+\.py", tree)}
    folders = ("training", "pipelines", "diffusers_ext", "examples", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"]
    assert named <= {path.name for path in files}
    assert not {path.name for path in files if path.parent.name not in ("objectives", "commands")} - named
