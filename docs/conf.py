"""How `make docs` builds the site: the pages of this folder, and api.rst from the docstrings."""

import dataclasses
import re
from itertools import groupby

import diffusers_ext

project, version = "diffusers_ext", diffusers_ext.__version__
copyright = "the diffusers_ext authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc, html_theme, html_title = "index", "furo", "diffusers_ext"
myst_heading_anchors = 3  # links to headings, as the code host has them
autodoc_member_order, autodoc_typehints_format = "bysource", "short"
autodoc_preserve_defaults, autodoc_inherit_docstrings = True, False
python_maximum_signature_line_length = 100


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings here are plain English with `code`: show them letter for letter, indented passages as they stand."""
    paragraphs = [list(group) for blank, group in groupby(lines, lambda line: not line.strip()) if not blank]
    found = [line for paragraph in paragraphs for line in [*_paragraph(paragraph), ""]]
    if dataclasses.is_dataclass(obj) and name.endswith("Options"):
        found += [line for field in dataclasses.fields(obj) for line in _option(field)]
    lines[:] = found


def _paragraph(lines: list[str]) -> list[str]:
    head, *rest = lines
    if head.strip() == "Args:":
        return [line for entry in _entries(rest) for line in _argument(entry)]
    return [
        line
        for code, group in groupby(lines, lambda line: line.startswith("    "))
        for line in (["", "::", "", *group, ""] if code else map(_words, group))
    ]


def _entries(lines: list[str]) -> list[str]:
    """One line for each argument; what is indented further goes on with the one above."""
    entries: list[str] = []
    margin = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    for line in lines:
        if not entries or len(line) - len(line.lstrip()) == margin:
            entries.append(line.strip())
        else:
            entries[-1] += " " + line.strip()
    return entries


def _argument(entry: str) -> list[str]:
    name, colon, text = entry.partition(": ")
    return [f":param {name}: {_words(text)}"] if colon and name.isidentifier() else ["", f"{_words(entry)}", ""]


def _option(field: dataclasses.Field) -> list[str]:
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default
    told = field.metadata.get("help", "")
    return [f"- ``{'' if field.metadata.get('positional') else '--'}{field.name}`` (``{default!r}``): {_words(told)}"]


def _words(line: str) -> str:
    """Text with every mark of reStructuredText escaped, and code as code."""
    parts = re.split(r"(`+)([^`]+)\1", line)
    for at in range(0, len(parts), 3):
        bullet, parts[at] = re.match(r"(\s*(?:- )?)(.*)", parts[at], re.DOTALL).groups() if at == 0 else ("", parts[at])
        parts[at] = bullet + re.sub(r"[\\*_|`]", r"\\\g<0>", parts[at])
    texts, codes = parts[::3], parts[2::3]
    return "".join(f"{text}\\ ``{code.strip()}``\\ " for text, code in zip(texts, codes)) + texts[-1]


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain)
