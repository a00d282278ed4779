"""Charts and the contact sheet put things where the data says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image
from run_samples import sample_cell

from charengine.charts.canvas import COLOURS, PilCanvas, SvgCanvas
from charengine.charts.plots import Band, Series, contact_sheet, line_chart, ticks, trade_off


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.013, 0.027) == [0.015, 0.02, 0.025]
    assert ticks(50, 300) == [50, 100, 150, 200, 250, 300]


def test_a_line_chart_runs_from_corner_to_corner() -> None:
    canvas = SvgCanvas(500, 300, "loss")
    line_chart(canvas, [Series("a", [(0, 1.0), (10, 0.0)], "s0")], x_label="step", y_label="loss", zero_based=True)
    svg = ElementTree.fromstring(canvas.to_svg())
    line = [node for node in svg.iter("polyline") if node.get("stroke") == "var(--s0)"][0]
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in line.get("points", "").split())
    assert (x0, x1) == (58, 482)  # the plot's left and right edge
    assert y1 == 256 and y0 < 60  # zero at the bottom, the maximum near the top


def test_zones_outside_the_data_are_not_drawn() -> None:
    canvas = SvgCanvas(500, 300, "loss")
    bands = [Band(0.0, 0.06, "overfit"), Band(0.15, float("inf"), "underfit")]
    points = [(0, 0.1), (10, 0.05)]
    line_chart(canvas, [Series("a", points, "s0")], x_label="", y_label="", bands=bands, zero_based=True)
    assert "overfit" in canvas.to_svg() and "underfit" not in canvas.to_svg()


def test_labels_cannot_break_the_page() -> None:
    canvas = SvgCanvas(10, 10, "<title>")
    canvas.text((0, 0), "<script>&")
    assert ElementTree.fromstring(canvas.to_svg()).findtext("text") == "<script>&"


def test_the_trade_off_marks_the_pick_and_draws_a_line_for_each_checkpoint() -> None:
    cells = [sample_cell(0, 0.0), *(sample_cell(step, s) for step in (100, 300) for s in (0.4, 0.8))]
    canvas = SvgCanvas(640, 420, "trade-off")
    trade_off(canvas, cells, cells[2], 0.9)
    svg = canvas.to_svg()
    ring = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="9"', svg)
    assert ring and f'<circle cx="{ring[1]}" cy="{ring[2]}" r="4" fill="var(--s0)"' in svg
    assert "step 100" in svg and "step 300" in svg and "floor 90%" in svg


def test_the_same_chart_can_be_a_picture() -> None:
    canvas = PilCanvas(200, 120)
    line_chart(canvas, [Series("a", [(0, 0.0), (1, 1.0)], "s1")], x_label="", y_label="", zero_based=True)
    assert canvas.image.size == (400, 240)
    assert _rgb(COLOURS["s1"]) in {colour for _, colour in canvas.image.getcolors(100_000) or []}


def test_a_contact_sheet_has_every_picture_in_its_place_and_outlines_the_pick() -> None:
    colours = {(p, s): (50 * p, 100 * s, 200) for p in range(2) for s in range(2)}
    images = {place: Image.new("RGB", (60, 60), colour) for place, colour in colours.items()}
    sheet = contact_sheet([("base", images), ("step 1\n1", images)], ["one", "two"], 2, picked=1, thumb=60)
    found = [
        sheet.getpixel((34 + 64 * column, 44 + 20 + 30 + 148 * p + 64 * s)) for column in (0, 1) for p, s in colours
    ]
    assert found == list(colours.values()) * 2
    accent = _rgb(COLOURS["accent"])
    outlined = [x for x in range(sheet.width) if sheet.getpixel((x, sheet.height // 2)) == accent]
    assert outlined and min(outlined) > 60


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_flat_line_still_has_a_chart(value: float) -> None:
    canvas = SvgCanvas(200, 100, "flat")
    line_chart(canvas, [Series("a", [(0, value), (5, value)], "s0")], x_label="", y_label="")
    assert "nan" not in canvas.to_svg()


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
