"""The card of a saved pipeline: what it is, how it is loaded, and what it drew."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from PIL.Image import Image

from .markdown import escape, literal, table
from .parts import NOT_TO_DRAW, save

Gallery = Sequence[tuple[Image, str]]  # pictures and what is to be said of each: prompt, seed, score

LIMITS = f"""## Limits and misuse

It draws what its base model draws, with that model's biases and under its licence.
{NOT_TO_DRAW}"""
OF_A_REWARD = """Its reward orders the pictures of one prompt and no more: scores of different prompts do not compare, and none marks a
good picture. The longer one searches with one reward, the more one finds what that reward overlooks: from 16 candidates
on take an ensemble, and look at a reward that did not choose."""


def write_pipeline_card(folder: Path, pipe: Any, name: str, gallery: Gallery = (), module: str | None = None) -> Path:
    """Write README.md, and gallery/, into a folder that a `HubLoadable` pipeline was saved to.

    name: by which it is loaded, `owner/name` or the folder's name. module: of this package, that holds its class; None
    for a class of somebody else.
    """
    rewarded = getattr(pipe, "reward_model", None) is not None
    base = pipe.name_or_path if _on_the_hub(pipe.name_or_path) else None
    data = _data(
        ["reward", "reranking"] if rewarded else [],
        license="other",
        license_name="that-of-the-base-model",
        base_model=base if base != name else None,
        widget=_save_gallery(folder, gallery) or None,
    )
    kind = type(pipe).__name__
    sections = [
        f"# {escape(name.split('/')[-1])}",
        _summary(type(pipe)),
        *(["<Gallery />"] if gallery else []),
        f"""## Use

{_install(module)}```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({literal(name)}, trust_remote_code=True)
```

`trust_remote_code` is for the `.py` files of this repository, which say where `{kind}` and its parts are to be imported
from. Without a network, a repository with code loads as a folder only, downloaded whole before (`hf download {name}`):

```python
from huggingface_hub import snapshot_download

pipe = DiffusionPipeline.from_pretrained(snapshot_download({literal(name)}, local_files_only=True), trust_remote_code=True)
```""",
        *([_around_other_weights(kind, module)] if module else []),
        f"## Parts\n\n{_parts(pipe)}",
        LIMITS,
        *([OF_A_REWARD] if rewarded else []),
    ]
    return save(folder, data, "\n\n".join(sections))


def write_code_card(folder: Path, pipeline: type, name: str) -> Path:
    """Write README.md of a repository that holds `pipeline.py` and no weights; name as above."""
    return _write_usage(
        folder,
        pipeline,
        name,
        f"""from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("owner/weights", custom_pipeline={literal(name)}, trust_remote_code=True)""",
        "`owner/weights` stands for any weights of this pipeline's family. There are none here.",
    )


def write_block_card(folder: Path, block: type, name: str) -> Path:
    """Write README.md of a repository that holds a Modular Diffusers block; name as above."""
    return _write_usage(
        folder,
        block,
        name,
        f"""from diffusers import ModularPipelineBlocks

block = ModularPipelineBlocks.from_pretrained({literal(name)}, trust_remote_code=True)
blocks.sub_blocks.insert("rerank", block, len(blocks.sub_blocks))""",
        "`blocks` stands for those of any pipeline whose output the block reads.",
    )


def _write_usage(folder: Path, kind: type, name: str, code: str, remark: str) -> Path:
    sections = [
        f"# {escape(name.split('/')[-1])}",
        _summary(kind),
        f"## Use\n\n```python\n{code}\n```\n\n{remark}",
        LIMITS,
    ]
    return save(folder, _data([], license="apache-2.0"), "\n\n".join(sections))


def _on_the_hub(name: str | Path | None) -> bool:
    """Whether that is a repository's name and no path, whichever folder one stands in now."""
    return isinstance(name, str) and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def _data(tags: list[str], **more: Any) -> ModelCardData:
    tags = ["custom-pipeline", *tags, "diffusers_ext"]
    return ModelCardData(library_name="diffusers", pipeline_tag="text-to-image", tags=tags, **more)


def _summary(pipeline: type) -> str:
    """The first paragraph of what the class says about itself."""
    return (inspect.getdoc(pipeline) or pipeline.__name__).split("\n\n")[0]


def _install(module: str | None) -> str:
    return "```bash\npip install diffusers_ext\n```\n\n" if module else ""


def _around_other_weights(kind: str, module: str) -> str:
    return f"""Around other weights, by the class or by the path of its file in a checkout:

```python
from {module} import {kind}

pipe = {kind}.from_pretrained("owner/weights")
pipe = DiffusionPipeline.from_pretrained(
    "owner/weights", custom_pipeline="pipelines/{module.split(".")[-1]}.py", trust_remote_code=True
)
```"""


def _parts(pipe: Any) -> str:
    rows = [(part, "none" if value is None else type(value).__name__) for part, value in pipe.components.items()]
    return table(("part", "class"), rows)


def _save_gallery(folder: Path, gallery: Gallery) -> list[dict]:
    """Write the pictures; return what the Hub's page shows of them."""
    widget = []
    for number, (image, caption) in enumerate(gallery):
        path = folder / "gallery" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
        widget.append({"text": caption, "output": {"url": path.relative_to(folder).as_posix()}})
    return widget
