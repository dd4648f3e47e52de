"""Labelled picture grids and curves: what a run shows a person."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TEXT, PAPER, GAP = (40, 40, 40), (255, 255, 255), 6
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE = ("#2c6fbb", "#d1495b", "#3a9d5d", "#edae49", "#7b5ea7", "#555555")


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    labels: Sequence[str],
    cell: int = 128,
    title: str = "",
) -> Image.Image:
    """Lay out rows of images under column names, each row's label above it.

    Images of any size are fitted into square cells; small ones are enlarged without smoothing.

    >>> labelled_grid([[Image.new('RGB', (32, 32))]], ['a column'], ['a row']).mode
    'RGB'
    """
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    line, top = 18, (24 if title else 0) + 22
    width = len(columns) * (cell + GAP) + GAP
    page = Image.new("RGB", (width, top + len(rows) * (line + cell + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((GAP, 4), title, TEXT, font)
    for column, name in enumerate(columns):
        draw.text(
            (GAP + column * (cell + GAP) + cell / 2, top - 10), _clip(draw, name, small, cell), TEXT, small, anchor="mm"
        )
    for index, (images, label) in enumerate(zip(rows, labels)):
        y = top + index * (line + cell + GAP)
        draw.text((GAP, y + 2), _clip(draw, label, small, width - 2 * GAP), TEXT, small)
        for column, image in enumerate(images):
            fitted = fit(image, cell)
            x = GAP + column * (cell + GAP) + (cell - fitted.width) // 2
            page.paste(fitted, (x, y + line + (cell - fitted.height) // 2))
    return page


def captioned_grid(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8, cell: int = 128, title: str = ""
) -> Image.Image:
    """Lay out images in order, each above its own caption, wrapped to three lines.

    >>> captioned_grid([Image.new('RGB', (32, 32))] * 2, ['red', 'blue']).size
    (1078, 182)
    """
    font, small, lines = ImageFont.load_default(14), ImageFont.load_default(11), 3
    head, step = (24 if title else 0) + GAP, cell + 14 * lines + GAP
    page = Image.new("RGB", (columns * (cell + GAP) + GAP, head + -(-len(images) // columns) * step), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 4), title, TEXT, font)
    for index, (image, caption) in enumerate(zip(images, captions)):
        x, y = GAP + index % columns * (cell + GAP), head + index // columns * step
        page.paste(fit(image, cell), (x, y))
        for line, text in enumerate(_wrap(draw, caption, small, cell, lines)):
            draw.text((x, y + cell + 2 + 13 * line), text, TEXT, small)
    return page


def fit(image: Image.Image, cell: int) -> Image.Image:
    """Scale an image into a square cell, keeping its shape.

    >>> fit(Image.new('RGB', (64, 32)), 16).size
    (16, 8)
    """
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def plot_curves(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    log_y: bool = False,
) -> None:
    """Draw named curves {name: (xs, ys)} into one PNG."""
    from matplotlib.figure import Figure  # not above: needed at the end only, if at all

    figure = Figure(figsize=(6, 3.2), dpi=120)
    axes = figure.subplots()
    for colour, (name, (xs, ys)) in zip(PALETTE * 4, curves.items()):
        axes.plot(xs, ys, color=colour, label=name, linewidth=1.5)
    axes.set(xlabel=x_label, ylabel=y_label, yscale="log" if log_y else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def _clip(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """Shorten a text to a width in pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int, lines: int) -> list[str]:
    """Break a text between words into at most so many lines of a width; the last is shortened."""
    wrapped = [""]
    for word in text.split():
        longer = f"{wrapped[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width or not wrapped[-1] or len(wrapped) == lines:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    return [_clip(draw, line, font, width) for line in wrapped]
