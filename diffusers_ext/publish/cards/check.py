"""Is a model card fit to publish? Found out from the folder alone, without network.

card_problems("runs/my-controlnet")     # [] when there is nothing to fix
"""

import ast
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from .markdown import split_code

PLACEHOLDERS = re.compile(r"\bTODO\b|\bFIXME\b|(?i:More Information Needed|\[optional\])")
ACTIVE = re.compile(
    r"<(?:script|iframe|object|embed|style|form)\b|<[^>]*\son\w+\s*=|(?<!\\)\]\(\s*(?:javascript|data|vbscript):",
    re.IGNORECASE,
)
LOCAL_PATH = re.compile(
    r"(?<![\w.:/])(/(home|root|Users|tmp|mnt|work|data|workspace)/[^\s\"')`]*|[A-Z]:\\\\[^\s\"')`]*)"
)
SPAN = re.compile(r"(?<![\\`])(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)  # code within a line
RELATIONS = ("adapter", "finetune", "merge", "quantized")
SECTIONS = ("Use", "Limits")  # what every card tells: how to load it, and where it ends


def card_problems(folder: str | Path) -> list[str]:
    """Return what is wrong with the README.md of a model's folder, each with its remedy; empty where it is in order."""
    path = Path(folder) / "README.md"
    if not path.is_file():
        return [f"{path}: missing; a training writes it, or write one by hand"]
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        return [f"{path}: metadata cannot be read: {error}"]
    found = _metadata(card.data.to_dict()) + _text(card.text) + _pictures(card, path.parent)
    return [f"{path}: {problem}" for problem in found]


def _metadata(data: dict[str, Any]) -> list[str]:
    problems = [f"metadata: {name} is missing" for name in ("library_name", "license", "tags") if not data.get(name)]
    if not all(isinstance(tag, str) for tag in data.get("tags") or []):
        problems.append("metadata: tags must be texts; put others in quotes")
    if data.get("license") == "other" and not data.get("license_name"):
        problems.append("metadata: license is other: give license_name, and license_link where there is one")
    relation = data.get("base_model_relation")
    if relation and relation not in RELATIONS:
        problems.append(f"metadata: base_model_relation is {relation!r}; one of {', '.join(RELATIONS)}")
    if data.get("base_model") and LOCAL_PATH.search(str(data["base_model"])):
        problems.append("metadata: base_model is a path of this machine; name the repository")
    return problems


def _text(text: str) -> list[str]:
    problems = [f"{match.group()!r} is left in the text" for match in PLACEHOLDERS.finditer(text)]
    problems += [f"names a path of this machine, {match.group()}" for match in LOCAL_PATH.finditer(text)]
    prose, blocks = split_code(text)
    words = SPAN.sub("", prose)
    problems += [f"{match.group()!r} would run in a browser; write &lt; for <" for match in ACTIVE.finditer(words)]
    headings = re.findall(r"^#+ *(.+?) *$", prose, re.MULTILINE)
    problems += [
        f"no section '{name}'" for name in SECTIONS if not any(name in heading.split() for heading in headings)
    ]
    for code in [code for language, code in blocks if language in ("py", "python")]:
        try:
            ast.parse(code)
        except SyntaxError as error:
            problems.append(f"a block of Python does not parse: {error.msg}, {(error.text or '').strip()!r}")
    return problems


def _pictures(card: ModelCard, folder: Path) -> list[str]:
    prose, _ = split_code(card.text)
    named = re.findall(r"(?<!\\)!\[[^\]]*\]\(([^)\s]+)", SPAN.sub("", prose))
    widgets = card.data.to_dict().get("widget") or []
    named += [
        widget["output"]["url"] for widget in widgets if isinstance(widget, dict) and "url" in widget.get("output", {})
    ]
    root = folder.resolve()
    problems = []
    for name in dict.fromkeys(named):
        if name.startswith(("http://", "https://")):
            continue
        if not (root / name).resolve().is_relative_to(root):
            problems.append(f"the picture {name} lies outside the folder, and will not be published")
        elif not (root / name).is_file():
            problems.append(f"the picture {name} is not there")
    return problems
