"""Every example in a docstring runs, and every name that `import diffusers_ext` offers has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import diffusers_ext

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> list[str]:
    paths = sorted((ROOT / "diffusers_ext").rglob("*.py"))
    shown = [path for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in shown]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name):
    done = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert done.attempted and not done.failed, f"python -m doctest: {name}"


@pytest.mark.parametrize("name", diffusers_ext.__all__)
def test_public_names_have_an_example(name):
    value = getattr(diffusers_ext, name)
    documented = [value, *vars(value).values()] if inspect.isclass(value) else [value]
    assert any(">>> " in (inspect.getdoc(part) or "") for part in documented if callable(part) or part is value)
