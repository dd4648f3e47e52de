"""Markdown around words that anybody may have written: prompts, class names, names of files, commands.

What is shown as text goes through `escape`, what is shown as code through `code`, `literal` or `fenced`.
"""

import json
import re
from collections.abc import Iterable, Sequence

ACTIVE = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")  # an underscore within a word is one


def escape(words: object) -> str:
    """Return words as one line of Markdown that shows them letter for letter, in a table as well.

    >>> print(escape('a_b *c*'))
    a_b \\*c\\*
    """
    line = "".join(letter if letter.isprintable() else " " for letter in str(words))
    line = " ".join(line.split()).replace("&", "&amp;").replace("<", "&lt;")
    return ACTIVE.sub(r"\\\g<0>", line)


def code(words: object) -> str:
    """Return words as code within a line."""
    line = " ".join(str(words).encode("utf-8", "replace").decode().split())
    ticks = "`" * (_longest_ticks(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def literal(words: str) -> str:
    """Return words as a string of Python, and of JSON."""
    return json.dumps(words, ensure_ascii=not words.isprintable())


def fenced(text: str, language: str = "") -> str:
    """Return a block of code that nothing in the text can end."""
    text = text.encode("utf-8", "replace").decode()
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already.

    >>> print(table(['name', 'value'], [['loss', '0.1']]))
    | name | value |
    |---|---|
    | loss | 0.1 |
    """
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def escape_table(markdown: str) -> str:
    """Return tables of words, and lines between them, with all words escaped."""
    return "\n".join(map(_row, markdown.splitlines()))


def split_code(markdown: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the text outside blocks of code, and the blocks as (language, code); one left open ends with the text."""
    prose: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in markdown.splitlines():
        rest = line.lstrip("`")
        ticks = line[: len(line) - len(rest)]
        if not fence and len(ticks) >= 3 and "`" not in rest:
            fence = ticks
            blocks.append((rest.strip(), []))
        elif fence and len(ticks) >= len(fence) and not rest.strip():
            fence = ""
        else:
            (blocks[-1][1] if fence else prose).append(line)
    return "\n".join(prose), [(language, "\n".join(lines)) for language, lines in blocks]


def _row(line: str) -> str:
    if not line.startswith("|"):
        return re.sub("^(?=[-#>+=])", r"\\", escape(line))
    return "|".join(f" {escape(cell)} " if cell.strip() else cell for cell in line.split("|"))


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
