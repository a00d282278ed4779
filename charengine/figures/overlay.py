"""A sheet with what was found drawn on it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from charengine.figures.find import FoundFigures
from charengine.pictures import png
from charengine.records import VIEWS
from charengine.store import Store
from charengine.writing import write_atomically

COLOURS = ("#d62828", "#1d70b8", "#2a9d3a", "#b8860b", "#7b2cbf")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_overlay(image: Image.Image, found: FoundFigures) -> Image.Image:
    """The sheet with the found boxes and view names on it, and the problem, if there is one, written at the top."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    line = max(2, min(picture.size) // 250)
    letters = max(12, picture.height // 40)
    font = ImageFont.load_default(size=letters)
    names = VIEWS if not found.problem else tuple(f"figure {i + 1}" for i in range(len(found.figures)))
    for figure, name, colour in zip(found.figures, names, COLOURS * 20, strict=False):
        x0, y0, x1, y1 = figure.box
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=line)
        _label(draw, (x0 + line, y0 + line), name, colour, font)
    if found.problem:
        draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=COLOURS[0], width=2 * line)
        _label(
            draw, (2 * line, picture.height - 2 * line - 1.4 * letters), found.problem.split(":")[0], COLOURS[0], font
        )
    return picture


def _label(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, font: Font) -> None:
    draw.rectangle(draw.textbbox(at, text, font=font), fill=colour)
    draw.text(at, text, fill="white", font=font)


def keep_picture(picture: Image.Image, store: Store) -> Path:
    """Put a rejected sheet's picture in the store and beside it as a file that a person can open; the file's path."""
    data = png(picture)
    ref = store.put(data, "rejected.png")
    folder = Path(store.root) if store.local else Path(tempfile.gettempdir()) / "charengine"
    path = folder / "rejected" / f"{ref.sha256[:12]}.png"
    write_atomically(path, data)
    return path.resolve()
