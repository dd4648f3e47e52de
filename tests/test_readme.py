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


def anchors(page: Path) -> set[str]:
    """What the code host makes of a page's headings: lower case, without punctuation, dashes for spaces."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.+?) *$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_pictures_and_anchors_exist(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            other = page.parent / target if target else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), f"{target}#{anchor}"


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


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 103  # a picture's caption, or code


def test_every_loss_stands_where_the_route_through_the_code_says():
    text = (ROOT / "docs" / "reading-the-code.md").read_text(encoding="utf-8")
    table = text.split("## The loss of each method")[1].split("##")[0]
    rows = [line for line in table.splitlines() if "](" in line]
    for row in rows:
        files = [ROOT / "docs" / target for target in re.findall(r"\]\(([^)]+)\)", row)]
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", row.split("|")[3]):
            assert re.search(rf"^(class|def) {name}\b", source, re.M), name
    listed = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", table)}
    objectives = [
        path for path in (ROOT / "diffusers_ext").rglob("*.py") if "(Objective):" in path.read_text(encoding="utf-8")
    ]
    assert objectives and set(objectives) <= listed


def test_every_page_is_on_the_site_and_every_public_name_in_its_reference():
    import diffusers_ext

    index, reference = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("index.md", "api.rst"))
    listed = index.split("{toctree}")[1].split()
    assert sorted(path.stem for path in PAGES[1:] if path.stem != "index") == sorted(
        set(listed) & {p.stem for p in PAGES}
    )
    assert all(f":: diffusers_ext.{name}\n" in reference for name in diffusers_ext.__all__)
    for folder in (ROOT / "diffusers_ext", ROOT / "pipelines"):
        for path in folder.rglob("[!_]*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).replace(
                "pipelines", "diffusers_ext.pipelines"
            )
            assert path.name == "cli.py" or f"automodule:: {name}\n" in reference, path


def test_the_site_builds_without_a_warning(tmp_path):
    """Where the docs extra is installed; `make docs` does the same."""
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name)
    call = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_benchmarks_page_is_complete_and_its_figures_stand_on_their_pages():
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `") and ".py`" in line]
    named = {re.search(r"`(\w+)\.py`", row[0])[1] for row in rows}
    named |= {"harness", "hint_training", "spreads", "step_clock"}
    assert named == {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for row in rows:
        target = re.search(r"\]\(([^)#]*)", row[3])[1]
        source = (page.parent / target if target else page).read_text(encoding="utf-8")
        source = source if target else source.split("## A ControlNet training step")[1]
        for figure in re.findall(r"(?<![\w.,])-?\d+(?:\.\d+|,\d{3})", row[2]):
            found = re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", source.replace("−", "-"))
            assert found, f"{row[0]}: {figure} is not on {target or 'the page'}"
