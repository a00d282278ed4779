"""Where the label of a point goes, so that it covers neither another label nor a line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from charengine.charts.canvas import Point

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels

WIDE, HIGH, SIZE = 6.2, 11.0, 11  # pixels of one letter, of a line of text, and its font size
NEAR, FAR = 8.0, 24.0  # pixels between a point and its label
EVERY = 3.0  # pixels between two points that stand for a line


class Labels:
    """Places labels one after the other.

    Args:
        width: of the picture, pixels.
        height: likewise.
    """

    def __init__(self, width: float, height: float) -> None:
        self._width, self._height = width, height
        self._lines: list[Point] = []
        self._boxes: list[Box] = []

    def avoid_line(self, points: Sequence[Point]) -> None:
        """A line that labels should not cross."""
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            count = max(1, round(math.hypot(x1 - x0, y1 - y0) / EVERY))
            self._lines += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count + 1)]

    def avoid_dot(self, at: Point, radius: float) -> None:
        """A disc or ring that labels must not cover."""
        self._boxes.append((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius))

    def place(self, at: Point, words: str) -> Point:
        """Baseline and left end of a label beside a point: the place around it that covers least."""
        best = min(_around(at, WIDE * len(words)), key=self._covered)
        self._boxes.append(best)
        return best[0], best[3] - 2

    def _covered(self, box: Box) -> float:
        left, top, right, bottom = box
        outside = left < 0 or top < 0 or right > self._width or bottom > self._height
        others = sum(left < x1 and right > x0 and top < y1 and bottom > y0 for x0, y0, x1, y1 in self._boxes)
        crossed = sum(left <= x <= right and top <= y <= bottom for x, y in self._lines)
        return 1000 * outside + 100 * others + crossed


def _around(at: Point, width: float) -> list[Box]:
    """Right of the point first, then all round it, then all round it farther away."""
    boxes = []
    for away in (NEAR, FAR):
        for across, up in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)):
            middle = at[0] + across * (away + width / 2), at[1] - up * (away + HIGH / 2 if not across else away * 0.8)
            boxes.append((middle[0] - width / 2, middle[1] - HIGH / 2, middle[0] + width / 2, middle[1] + HIGH / 2))
    return boxes
