"""Nothing outside diffusion/bases/ knows a family of bases by name; each family answers what the seam asks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diffusers_ext import embedded_model
from diffusers_ext.diffusion.base import base_of, family_of, find, load_base
from diffusers_ext.diffusion.bases import FAMILIES, network_of
from diffusers_ext.errors import InputError

ROOT = Path(__file__).parents[2]
BASES = ROOT / "diffusers_ext" / "diffusion" / "bases"
NAMES = re.compile(
    r"^(unet|is_sdxl|sdxl|xl|sd3|flux|z_image|time_cond_proj_dim|added_cond_kwargs|text_encoder_[23]"
    r"|UNet\w*|\w*Transformer2DModel|StableDiffusion\w*|stable_diffusion\w*|SD_?PARTS|Flux\w*|ZImage\w*)$"
)
# Files that make, or are, a pipeline of one family.
OF_ONE_FAMILY = {"toy/tiny.py": "makes the parts of the embedded model"}


def words(tree: ast.AST) -> Iterator[str]:
    """Identifiers, attributes, arguments and one-word texts of a module; sentences are for people."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            yield node.arg
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def library() -> list[Path]:
    files = [path for path in (ROOT / "diffusers_ext").rglob("*.py") if BASES not in path.parents]
    return [path for path in files if path.relative_to(ROOT / "diffusers_ext").as_posix() not in OF_ONE_FAMILY]


@pytest.mark.parametrize("path", library(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_family_is_named_outside_bases(path):
    named = {word for word in words(ast.parse(path.read_text(encoding="utf-8"))) if NAMES.match(word)}
    assert not named, f"{path}: {', '.join(sorted(named))}; ask the family instead"


@pytest.mark.parametrize("folder", ["untrained", "untrained_xl"])
def test_a_folder_its_pipeline_and_its_network_are_of_one_family(folder, request):
    path = request.getfixturevalue(folder)
    family, pipe = find(path), load_base(path)
    assert base_of(pipe).family is family is family_of(network_of(pipe))
    assert [other for other in FAMILIES if other.matches(dict(pipe.components))] == [family]


@pytest.mark.parametrize("folder", ["untrained", "untrained_xl"])
def test_embeddings_have_the_shapes_that_a_warm_cache_expects(folder, request):
    path = request.getfixturevalue(folder)
    embeddings = base_of(load_base(path)).encoders.embed(["red circle"])
    assert {name: tuple(value.shape[1:]) for name, value in embeddings.items()} == find(path).embedding_shapes(path)


def test_what_is_no_base_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline", "vocoder": ["x", "y"]}')
    with pytest.raises(InputError, match="this WanPipeline has none of the parts unet"):
        find(tmp_path)
    with pytest.raises(InputError, match="Linear: not the network of a base"):
        family_of(torch.nn.Linear(2, 2))
    assert find(embedded_model()) is FAMILIES[0] and network_of(object()) is None
