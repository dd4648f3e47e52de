"""The package as installed: public names, light imports, the wheel's content."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import diffusers_ext

ROOT = Path(__file__).parents[1]


def test_public_names_load():
    for name in diffusers_ext.__all__:
        assert callable(getattr(diffusers_ext, name)) and name in dir(diffusers_ext)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diffusers_ext.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, diffusers_ext, diffusers_ext.options; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scripts_and_pipelines_are_importable():
    from diffusers_ext.training import train_controlnet

    assert train_controlnet.Options().hint_init == "data"


def test_every_package_is_installed():
    """setuptools is given a list, since training/ and pipelines/ lie elsewhere; a package that it lacks would be missing."""
    listed = set(re.findall(r'"(diffusers_ext[\w.]*)",', (ROOT / "pyproject.toml").read_text()))
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "diffusers_ext").rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} <= listed


def test_the_wheel_holds_everything(tmp_path):
    """Built without isolation, since tests have no network; setuptools comes with the dev extra."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run([*command, "--quiet"], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "training/train_controlnet.py",
        "pipelines/__init__.py",
        "py.typed",
        "toy/circles.py",
        "preferences/annotate/page/index.html",
        "preferences/annotate/page/page.js",
        "toy/embedded/fill50k-64/model_index.json",
    ):
        assert f"diffusers_ext/{name}" in names
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in names)
    assert not any(name.startswith(("tests/", "runs/")) for name in names)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "import diffusers_ext.training.train_controlnet as t; print(t.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().startswith(str(site)), done.stderr


def test_no_folder_is_named_like_a_pipeline_of_diffusers():
    """diffusers would write that name as the library of our components (shared spec of the ecosystem, A1)."""
    import diffusers.pipelines

    taken = {path.name for path in Path(diffusers.pipelines.__path__[0]).iterdir() if path.is_dir()}
    ours = {path.name for path in (ROOT / "diffusers_ext").rglob("*") if path.is_dir()}
    assert not (taken - {"__pycache__"}) & ours
