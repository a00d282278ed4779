"""One drawing surface, two outputs: inline SVG for the report (coloured by its CSS) and PIL for MLflow."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

# Okabe-Ito order, told apart by colour-blind eyes; the others follow the page's theme in SVG.
COLOURS = {
    "s0": "#0072b2",
    "s1": "#d55e00",
    "s2": "#009e73",
    "s3": "#cc79a7",
    "s4": "#b58900",
    "s5": "#56b4e9",
    "ink": "#22252a",
    "muted": "#6b7078",
    "grid": "#d9dce1",
    "faint": "#b4bac4",
    "accent": "#b3261e",
    "paper": "#ffffff",
}


def series_colour(index: int) -> str:
    """Name of the colour of the n-th series."""
    return f"s{index % 6}"


class Canvas(Protocol):
    """What a chart draws on; coordinates are pixels from the top left, colours are names of COLOURS."""

    width: int
    height: int

    def line(self, points: Sequence[Point], colour: str, width: float = 2.0, dashed: bool = False) -> None:
        """Open polyline."""
        ...

    def dot(self, at: Point, radius: float, colour: str, hollow: bool = False) -> None:
        """Filled disc, or a ring."""
        ...

    def box(self, corner: Point, size: Point, colour: str, opacity: float = 1.0) -> None:
        """Filled rectangle."""
        ...

    def text(self, at: Point, words: str, colour: str = "muted", size: int = 12, anchor: Anchor = "start") -> None:
        """One line of text, `at` on its baseline."""
        ...


class SvgCanvas:
    """Inline SVG; colours are CSS variables so that light, dark and print agree with the page."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def line(self, points: Sequence[Point], colour: str, width: float = 2.0, dashed: bool = False) -> None:
        """Open polyline."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="{width:g}"'
            f' stroke-linejoin="round"{dash}/>'
        )

    def dot(self, at: Point, radius: float, colour: str, hollow: bool = False) -> None:
        """Filled disc, or a ring."""
        look = f'fill="none" stroke="var(--{colour})" stroke-width="2.5"' if hollow else f'fill="var(--{colour})"'
        self._parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" {look}/>')

    def box(self, corner: Point, size: Point, colour: str, opacity: float = 1.0) -> None:
        """Filled rectangle."""
        (x, y), (width, height) = corner, size
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="var(--{colour})"'
            f' opacity="{opacity:g}"/>'
        )

    def text(self, at: Point, words: str, colour: str = "muted", size: int = 12, anchor: Anchor = "start") -> None:
        """One line of text, `at` on its baseline."""
        self._parts.append(
            f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" font-size="{size}" fill="var(--{colour})"'
            f' text-anchor="{anchor}">{html.escape(words)}</text>'
        )

    def to_svg(self) -> str:
        """The element, scaling with its container."""
        title = html.escape(self.title)
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{title}"><title>{title}</title>'
            f"{''.join(self._parts)}</svg>"
        )


class PilCanvas:
    """A white picture, drawn at twice the size for smooth lines."""

    SCALE = 2

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image as pil
        from PIL import ImageDraw

        self.width, self.height = width, height
        self.image: Image = pil.new("RGB", (width * self.SCALE, height * self.SCALE), COLOURS["paper"])
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[Point], colour: str, width: float = 2.0, dashed: bool = False) -> None:
        """Open polyline."""
        pixels = [self._at(point) for point in points]
        stroke = round(width * self.SCALE)
        pieces = _dashes(pixels, 9.0) if dashed else [pixels]
        for piece in pieces:
            self._draw.line(piece, fill=COLOURS[colour], width=stroke, joint="curve")

    def dot(self, at: Point, radius: float, colour: str, hollow: bool = False) -> None:
        """Filled disc, or a ring."""
        (x, y), r = self._at(at), radius * self.SCALE
        fill = None if hollow else COLOURS[colour]
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=COLOURS[colour], width=2 * self.SCALE)

    def box(self, corner: Point, size: Point, colour: str, opacity: float = 1.0) -> None:
        """Filled rectangle, mixed with white by its opacity."""
        (x, y), (width, height) = self._at(corner), self._at(size)
        level = [int(COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5)]
        mixed = tuple(round(255 + (value - 255) * opacity) for value in level)
        self._draw.rectangle((x, y, x + width, y + height), fill=mixed)

    def text(self, at: Point, words: str, colour: str = "muted", size: int = 12, anchor: Anchor = "start") -> None:
        """One line of text, `at` on its baseline."""
        corner = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        self._draw.text(self._at(at), words, fill=COLOURS[colour], font=font(size * self.SCALE), anchor=corner)

    def _at(self, point: Point) -> Point:
        return point[0] * self.SCALE, point[1] * self.SCALE


def font(size: float) -> FreeTypeFont | BitmapFont:
    """Pillow's own font: no font files are looked for on the machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _dashes(points: Sequence[Point], length: float) -> list[list[Point]]:
    """Cut a polyline into pieces of `length` pixels and keep every other one."""
    kept: list[list[Point]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        count = max(1, round(math.hypot(x1 - x0, y1 - y0) / length))
        steps = [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count + 1)]
        kept += [list(pair) for pair in zip(steps[::2], steps[1::2], strict=False)]
    return kept
