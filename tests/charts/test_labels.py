"""Labels of points stand apart: from each other, from dots and rings, and inside the picture."""

from __future__ import annotations

import itertools
import re

from run_samples import sample_cell

from charengine.charts.canvas import SvgCanvas
from charengine.charts.labels import HIGH, WIDE, Labels
from charengine.charts.plots import trade_off


def test_labels_of_one_place_do_not_cover_each_other_and_stay_inside() -> None:
    labels = Labels(200, 100)
    places = [*(labels.place((100, 50), "0.8") for _ in range(6)), labels.place((195, 5), "0.8")]
    boxes = [(x, y - HIGH + 2, x + 3 * WIDE, y + 2) for x, y in places]
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in itertools.combinations(boxes, 2):
        assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
    assert all(min(box) >= 0 and box[2] <= 200 and box[3] <= 100 for box in boxes)


def test_a_label_leaves_the_line_of_its_point_free() -> None:
    labels = Labels(200, 100)
    labels.avoid_line([(100, 50), (140, 20)])  # up and to the right, where a label would stand
    x, y = labels.place((100, 50), "1.2")
    assert x + 3 * WIDE < 100 or y > 50


def test_no_label_of_the_trade_off_collides_with_another_or_with_the_ring_of_the_pick() -> None:
    cells = [sample_cell(0, 0.0), *(sample_cell(step, s) for step in (100, 200, 300) for s in (0.4, 0.6, 0.8, 1.0))]
    canvas = SvgCanvas(760, 440, "trade-off")
    trade_off(canvas, cells, cells[10], 0.9)
    svg = canvas.to_svg()
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" font-size="11" fill="var\(--(?:s\d|ink)\)"[^>]*>([^<]+)<', svg)
    assert len(found) == len(cells)
    boxes = [(float(x), float(y) - 9, float(x) + 6 * len(words), float(y)) for x, y, words in found]
    [(cx, cy)] = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="9"', svg)]
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in itertools.combinations([*boxes, (cx - 9, cy - 9, cx + 9, cy + 9)], 2):
        assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
