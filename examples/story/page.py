"""The pieces of a self-contained HTML page: pictures and curves inside it, tables, commands."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from diffusers_ext.figures import plot_curves

STYLE = """
:root { --ink: #22272e; --soft: #5b6572; --line: #dfe3e8; --paper: #fff; --band: #f6f7f9; --mark: #2c6fbb }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 980px; margin: 0 auto; padding: 32px 20px 80px }
h1 { font-size: 32px; line-height: 1.2; margin: 0 0 8px } h2 { font-size: 22px; margin: 56px 0 4px }
p { margin: 10px 0; max-width: 76ch } .soft { color: var(--soft) }
figure { margin: 18px 0 } figcaption { color: var(--soft); font-size: 14px; max-width: 90ch }
img { max-width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 4px }
table { border-collapse: collapse; margin: 14px 0; font-size: 14.5px; display: block; overflow-x: auto }
th, td { text-align: right; padding: 5px 12px; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 600 } th:first-child, td:first-child { text-align: left }
td.left, th.left { text-align: left; white-space: normal }
pre { background: var(--band); padding: 12px 14px; border-radius: 4px; overflow-x: auto; font-size: 12.5px;
      line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere }
.short { border-left: 3px solid #d1495b; padding: 2px 14px; margin: 14px 0 }
.found { border-left: 3px solid var(--mark); padding: 2px 14px; margin: 14px 0; font-weight: 600 }
nav { margin: 18px 0; font-size: 15px } nav a, a { color: var(--mark) } details { margin: 14px 0 }
summary { cursor: pointer; color: var(--soft) }
"""


def text(words: str, kind: str = "") -> str:
    """A paragraph; `kind` is one of soft, found, short."""
    return f'<p class="{kind}">{html.escape(words)}</p>' if kind else f"<p>{html.escape(words)}</p>"


def figure(picture: Path | Image.Image, caption: str, width: int | None = None) -> str:
    """A picture inside the page; as wide as it is, or as `width` pixels."""
    if isinstance(picture, Image.Image):
        kept = io.BytesIO()
        picture.save(kept, "PNG", optimize=True)
        data = kept.getvalue()
    else:
        data = Path(picture).read_bytes()
    size = f' width="{width}"' if width else ""
    shown, words = base64.b64encode(data).decode(), html.escape(caption)
    return f'<figure><img{size} alt="{words}" src="data:image/png;base64,{shown}"><figcaption>{words}</figcaption></figure>'


def curves(lines: dict, x: str, y: str, caption: str) -> str:
    """Curves {name: (xs, ys)} as a figure."""
    with TemporaryDirectory() as folder:
        plot_curves(Path(folder) / "curves.png", lines, x, y)
        return figure(Path(folder) / "curves.png", caption, width=620)


def table(head: Sequence[str], rows: Sequence[Sequence], left: Sequence[int] = (0,)) -> str:
    """A table; columns in `left` hold words."""

    def line(cells: Sequence, tag: str) -> str:
        kinds = [' class="left"' if at in left else "" for at in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag}{kind}>{html.escape(str(cell))}</{tag}>" for cell, kind in zip(cells, kinds))
            + "</tr>"
        )

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def commands(lines: Sequence[str]) -> str:
    """What was typed."""
    return "<pre>" + html.escape("\n".join(lines)) + "</pre>"


def page(title: str, body: str) -> str:
    """A whole page that needs nothing else."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n'
