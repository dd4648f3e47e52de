"""Every name that `import diffusers_ext` offers has an example; pytest runs the examples of all docstrings."""

import inspect

import pytest

import diffusers_ext


@pytest.mark.parametrize("name", diffusers_ext.__all__)
def test_public_names_have_an_example(name):
    value = getattr(diffusers_ext, name)
    parts = [value, *vars(value).values()] if inspect.isclass(value) else [value]
    assert any(">>> " in (inspect.getdoc(part) or "") for part in parts if callable(part))
