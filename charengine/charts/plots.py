"""Charts and the contact sheet: the same drawing code for the report (SVG) and for MLflow (PIL)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.charts.canvas import COLOURS, Canvas, Point, font, series_colour
from charengine.charts.labels import SIZE, Labels
from charengine.records import CellMetrics

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

LEFT, RIGHT, TOP, BOTTOM = 58, 18, 34, 44  # pixels kept for labels


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[Point]
    colour: str
    width: float = 2.0
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """A labelled range of y values behind the lines."""

    low: float
    high: float
    label: str
    colour: str = "muted"


@dataclass(frozen=True)
class Axis:
    """Data range of one axis and its words."""

    low: float
    high: float
    label: str = ""
    show: Callable[[float], str] = "{:g}".format


@dataclass(frozen=True)
class Frame:
    """Maps data to pixels inside the labels."""

    canvas: Canvas
    x: Axis
    y: Axis

    def at(self, point: Point) -> Point:
        """Pixel of a data point."""
        width, height = self.canvas.width - LEFT - RIGHT, self.canvas.height - TOP - BOTTOM
        across = (point[0] - self.x.low) / (self.x.high - self.x.low)
        up = (point[1] - self.y.low) / (self.y.high - self.y.low)
        return LEFT + across * width, TOP + (1 - up) * height

    def draw_axes(self) -> None:
        """Grid lines, tick labels and axis labels."""
        for value in ticks(self.x.low, self.x.high):
            x, y = self.at((value, self.y.low))
            self.canvas.text((x, y + 16), self.x.show(value), anchor="middle", size=11)
        for value in ticks(self.y.low, self.y.high):
            x, y = self.at((self.x.low, value))
            self.canvas.line([(x, y), (self.canvas.width - RIGHT, y)], "grid", 1)
            self.canvas.text((x - 7, y + 4), self.y.show(value), anchor="end", size=11)
        self.canvas.text((self.canvas.width - RIGHT, self.canvas.height - 8), self.x.label, anchor="end")
        self.canvas.text((4, 14), self.y.label)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside a range."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(first * step + i * step, 10) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def line_chart(
    canvas: Canvas,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    bands: Sequence[Band] = (),
    rings: Sequence[Point] = (),
    zero_based: bool = False,
    show: Callable[[float], str] = "{:g}".format,
) -> None:
    """Lines over a common x, a legend above, labelled horizontal bands behind them, and rings around single points."""
    drawn = [line for line in series if line.points]
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    low, high = (0.0 if zero_based else min(ys)), max(ys)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    axis_x = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, x_label)
    frame = Frame(canvas, axis_x, Axis(low if zero_based else low - room, high + room, y_label, show))
    for band in bands:
        _draw_band(frame, band)
    frame.draw_axes()
    for line in drawn:
        canvas.line([frame.at(point) for point in line.points], line.colour, line.width, line.dashed)
        if len(line.points) == 1:
            canvas.dot(frame.at(line.points[0]), 3, line.colour)
    for point in rings:
        canvas.dot(frame.at(point), 7, "accent", hollow=True)
    _draw_legend(canvas, drawn, start=8 + 6.2 * len(y_label))


def trade_off(canvas: Canvas, cells: Sequence[CellMetrics], picked: CellMetrics, adherence_floor: float) -> None:
    """Likeness gained against adherence kept: a line per checkpoint from strength 0, the floor, the pick in a ring."""
    points = [_place(cell) for cell in cells]
    xs, ys = [x for x, _ in points] + [0.0, 1.0], [y for _, y in points] + [1.0, adherence_floor]
    frame = Frame(
        canvas,
        Axis(min(xs) - 0.04, max(xs) + 0.06, "likeness: 0 = base model, 1 = the sheet's own views"),
        Axis(min(ys) - 0.03, max(ys) + 0.04, "adherence kept", "{:.0%}".format),
    )
    frame.draw_axes()
    canvas.line([frame.at((frame.x.low, adherence_floor)), frame.at((frame.x.high, adherence_floor))], "muted", 1, True)
    canvas.text(
        _above(frame.at((frame.x.high, adherence_floor))), f"floor {adherence_floor:.0%}", anchor="end", size=11
    )
    steps = sorted({cell.checkpoint_step for cell in cells if cell.strength > 0})
    labels = Labels(canvas.width - RIGHT, canvas.height - BOTTOM)
    labels.avoid_dot(frame.at(_place(picked)), 10)
    lines, told = [], [((0.0, 1.0), "strength 0", "ink")]
    for index, step in enumerate(steps):
        own = sorted((c for c in cells if c.strength > 0 and c.checkpoint_step == step), key=lambda c: c.strength)
        lines.append(Series(f"step {step}", [(0.0, 1.0), *(_place(cell) for cell in own)], series_colour(index)))
        pixels = [frame.at(point) for point in lines[-1].points]
        canvas.line(pixels, lines[-1].colour, 1.6)
        labels.avoid_line(pixels)
        told += [(_place(cell), f"{cell.strength:g}", lines[-1].colour) for cell in own]
    for point, _, colour in told:
        canvas.dot(frame.at(point), 4, colour)
        labels.avoid_dot(frame.at(point), 4)
    for point, words, colour in told:
        canvas.text(labels.place(frame.at(point), words), words, colour, SIZE)
    canvas.dot(frame.at(_place(picked)), 9, "accent", hollow=True)
    _draw_legend(canvas, lines, start=100)


def contact_sheet(
    columns: Sequence[tuple[str, Mapping[tuple[int, int], Image]]],
    prompts: Sequence[str],
    seeds: int,
    picked: int | None,
    thumb: int = 120,
) -> Image:
    """Every cell at a glance.

    Args:
        columns: a label ("step 75\\n0.6") and the images of a cell by (prompt, seed), strength 0 first.
        prompts: row labels.
        seeds: rows per prompt.
        picked: index of the column to outline, if any.
        thumb: width of a picture, pixels.
    """
    from PIL import Image as pil
    from PIL import ImageDraw

    first = next(iter(columns[0][1].values()))
    high = round(thumb * first.height / first.width)
    gap, head, strip = 4, 44, 20
    width = len(columns) * (thumb + gap) + gap
    row = strip + seeds * (high + gap)
    sheet = pil.new("RGB", (width, head + len(prompts) * row + gap), COLOURS["paper"])
    draw = ImageDraw.Draw(sheet)
    for prompt, text in enumerate(prompts):
        draw.text((gap, head + prompt * row + 3), text, fill=COLOURS["muted"], font=font(12))
    for column, (label, images) in enumerate(columns):
        x = gap + column * (thumb + gap)
        _draw_heading(draw, x + thumb / 2, label, picked=column == picked)
        for (prompt, seed), image in images.items():
            y = head + prompt * row + strip + seed * (high + gap)
            sheet.paste(image.convert("RGB").resize((thumb, high), pil.Resampling.LANCZOS), (x, y))
    if picked is not None:
        x = gap + picked * (thumb + gap)
        draw.rectangle((x - 3, 2, x + thumb + 2, sheet.height - 2), outline=COLOURS["accent"], width=3)
    return sheet


def _draw_heading(draw: ImageDraw, middle: float, label: str, picked: bool) -> None:
    colour = COLOURS["accent" if picked else "ink"]
    for line, words in enumerate(label.split("\n")):
        draw.text((middle, 16 + 16 * line), words, fill=colour, font=font(13), anchor="ms")


def _draw_band(frame: Frame, band: Band) -> None:
    """A labelled zone, clipped to the chart; zones outside are left out."""
    bottom, top = max(band.low, frame.y.low), min(band.high, frame.y.high)
    if top <= bottom:
        return
    left, upper = frame.at((frame.x.low, top))
    right, lower = frame.at((frame.x.high, bottom))
    frame.canvas.box((left, upper), (right - left, lower - upper), band.colour, 0.09)
    if lower - upper > 14:
        frame.canvas.text((right - 6, upper + 13), band.label, size=11, anchor="end")


def _draw_legend(canvas: Canvas, lines: Sequence[Series], start: float) -> None:
    x = start + 16
    for line in (line for line in lines if line.label):
        canvas.line([(x, 10), (x + 18, 10)], line.colour, max(line.width, 2), line.dashed)
        canvas.text((x + 24, 14), line.label)
        x += 40 + 6.8 * len(line.label)


def _place(cell: CellMetrics) -> Point:
    return cell.known.gain, cell.known.kept  # as tables and reasons say


def _above(point: Point) -> Point:
    return point[0] - 4, point[1] - 7
