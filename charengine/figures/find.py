"""Finds the three figures of a sheet from its figure mask, wherever they stand, and says what is wrong when it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from charengine.figures.backdrop import Backdrop, Mask
from charengine.pictures import Box
from charengine.records import VIEWS

PLAIN_ENOUGH = 0.55  # share of the sheet's border that must be background
PIECE_SHARE = 0.12  # of the largest piece: smaller ones are props and strays
SPECK_SHARE = 2e-5  # of the sheet: smaller ones are noise
STRAY_SHARE = 1e-3  # of the sheet: less left over than this is not worth a word
REACH = 0.12  # of the sheet's width: a prop floating further away belongs to nobody
SMALL_FIGURE = 0.45  # of the tallest figure's height: no full view
NO_BACKGROUND = (
    "the picture has no plain background ({}): it looks like a photo; give a sheet of three full-body views on a plain "
    "background"
)
UNEVEN_SPACING = 2.2
GRAZE, GRAZE_FRAME = 0.008, 0.1  # of a figure's height: a shorter contact with the edge, or a frame, cuts nothing off
MOST_PIECES = 64
BRIDGE_SHARE = 0.015  # of the shorter side: figures joined by less than twice this can be parted


@dataclass(frozen=True)
class Figure:
    """One figure on the sheet: its box (x1, y1 exclusive) and its own pixels, (h, w) of the whole sheet."""

    box: Box
    mask: Mask

    @property
    def width(self) -> int:
        """Pixels."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.box[3] - self.box[1]

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def core(self) -> tuple[float, float]:
        """Columns between which the middle 80 % of the figure's pixels lie: the body without what it holds out."""
        return _core(self.mask.sum(axis=0))


@dataclass(frozen=True)
class FoundFigures:
    """What was found on a sheet.

    Args:
        figures: left to right; three when `problem` is empty.
        problem: why this is no sheet of three views, in words.
        blamed: index of the box to blame (0 front, 1 side, 2 back), if there is one.
        warnings: things that were put right or should be known.
        pieces: connected pieces of figure, specks left out.
    """

    figures: tuple[Figure, ...]
    problem: str = ""
    blamed: int | None = None
    warnings: tuple[str, ...] = ()
    pieces: int = 0


def find_figures(backdrop: Backdrop) -> FoundFigures:
    """Group the figure pixels into figures and check that they are a front, a side and a back view."""
    mask = backdrop.figure
    height, width = mask.shape
    if backdrop.plainness < PLAIN_ENOUGH:
        share = round(100 * backdrop.plainness)
        return FoundFigures((), NO_BACKGROUND.format(f"only {share} % of its border is one colour"))
    pieces = _pieces(mask)
    if not pieces:
        return FoundFigures((), "the sheet is empty: no figure stands out from the background")
    groups, strays = _group(pieces, width)
    warnings = []
    if len(groups) < len(VIEWS):
        parted = _part_joined(groups, width)
        if len(parted) > len(groups):
            warnings.append("two figures touch; they were parted at their thinnest place")
            groups = parted
    groups, small = _without_small(groups)
    figures = tuple(sorted((_figure(group) for group in groups), key=lambda figure: sum(figure.core)))
    if small or sum(np.count_nonzero(stray) for stray in strays) > STRAY_SHARE * mask.size:
        warnings.append("something that is no full figure was ignored (lettering, an inset or a loose object)")
    if len(figures) < len(VIEWS) and any(_fills(figure, width) for figure in figures):
        return FoundFigures(figures, NO_BACKGROUND.format("what stands out from it reaches from edge to edge"))
    problem, blamed = _what_is_wrong(figures, width, height)
    if not problem:
        warnings += _edge_warnings(figures, backdrop)
    return FoundFigures(figures, problem, blamed, tuple(warnings), len(pieces))


def standing_apart(backdrop: Backdrop) -> tuple[Figure, ...]:
    """The figures of any picture with a plain background, left to right: what is far smaller than the tallest is none."""
    pieces = _pieces(backdrop.figure)
    groups = [_figure(group) for group in _group(pieces, backdrop.figure.shape[1])[0]] if pieces else []
    tallest = max((figure.height for figure in groups), default=0)
    return tuple(sorted((f for f in groups if f.height >= SMALL_FIGURE * tallest), key=lambda figure: sum(figure.core)))


# --- grouping ---------------------------------------------------------------------------------------------------------


def _pieces(mask: Mask) -> list[Mask]:
    """Connected pieces, largest first, specks left out."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    smallest = max(8.0, SPECK_SHARE * mask.size)
    return [labels == i + 1 for i in np.argsort(-areas, kind="stable")[:MOST_PIECES] if areas[i] >= smallest]


def _group(pieces: list[Mask], sheet_width: int) -> tuple[list[Mask], list[Mask]]:
    """Pieces that stand above each other are one figure; small ones go to the nearest; (figures, strays)."""
    largest = np.count_nonzero(pieces[0])
    groups: list[Mask] = []
    props = []
    for piece in pieces:
        if np.count_nonzero(piece) < PIECE_SHARE * largest:
            props.append(piece)
            continue
        core = _core(piece.sum(axis=0))
        home = next((i for i, group in enumerate(groups) if _overlap(core, _core(group.sum(axis=0))) > 0.5), None)
        if home is None:
            groups.append(piece)
        else:
            groups[home] = groups[home] | piece
    strays = []
    boxes = [_box(group) for group in groups]
    for prop in props:
        home = _nearest(_box(prop), boxes, REACH * sheet_width)
        if home is None:
            strays.append(prop)
        else:
            groups[home] = groups[home] | prop
    return groups, strays


def _nearest(box: Box, boxes: list[Box], reach: float) -> int | None:
    """The box beside this one, by horizontal distance of its middle; None when too far, or above or below them all."""
    middle = (box[0] + box[2]) / 2
    level = [i for i, other in enumerate(boxes) if box[3] > other[1] and box[1] < other[3]]
    if not level:
        return None
    away = {i: max(boxes[i][0] - middle, middle - boxes[i][2], 0.0) for i in level}
    tie = {i: abs(middle - (boxes[i][0] + boxes[i][2]) / 2) for i in level}
    best = min(level, key=lambda i: (away[i], tie[i]))
    return best if away[best] <= reach else None


def _part_joined(groups: list[Mask], sheet_width: int) -> list[Mask]:
    """Cut figures that touch by something thin; figures that overlap stay as they are."""
    parted = []
    for group in groups:
        x0, _, x1, _ = _box(group)
        parted += _thin_parts(group) if x1 - x0 > 0.36 * sheet_width else [group]
    return parted


def _thin_parts(mask: Mask) -> list[Mask]:
    """The bodies left when thin bridges are eroded away, each with the pixels nearest to it; or the mask itself."""
    x0, y0, x1, y1 = _box(mask)
    inner = mask[y0:y1, x0:x1]
    widest = max(2, round(min(mask.shape) * BRIDGE_SHARE))
    for radius in range(1, widest + 1):
        eroded = ndimage.minimum_filter(inner.view(np.uint8), 2 * radius + 1, mode="constant").astype(bool)
        bodies = [piece for piece in _pieces(eroded) if _is_body(piece, inner)]
        groups = _group(bodies, inner.shape[1])[0] if len(bodies) > 1 else []
        if len(groups) > 1:
            return [_placed(part, mask.shape, x0, y0) for part in _grown_back(groups, inner)]
    return [mask]


def _is_body(piece: Mask, whole: Mask) -> bool:
    """Whether a piece is a figure and not a limb or a weapon: as tall as the whole, nearly, and not thin."""
    box = _box(piece)
    tall = box[3] - box[1] > 0.6 * whole.shape[0]
    return bool(tall and np.count_nonzero(piece) > PIECE_SHARE * np.count_nonzero(whole))


def _grown_back(seeds: list[Mask], mask: Mask) -> list[Mask]:
    """Every pixel of the mask given to the nearest seed."""
    ids = np.zeros(mask.shape, np.int32)
    for i, seed in enumerate(seeds):
        ids[seed] = i + 1
    rows, columns = ndimage.distance_transform_edt(ids == 0, return_distances=False, return_indices=True)
    owner = ids[rows, columns]
    return [mask & (owner == i + 1) for i in range(len(seeds))]


def _placed(part: Mask, shape: tuple[int, ...], x0: int, y0: int) -> Mask:
    whole = np.zeros(shape, bool)
    whole[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
    return whole


def _without_small(groups: list[Mask]) -> tuple[list[Mask], int]:
    """Leave out what is far smaller than the tallest figure, as long as three remain."""
    heights = [_box(group)[3] - _box(group)[1] for group in groups]
    tall = [group for group, height in zip(groups, heights, strict=True) if height >= SMALL_FIGURE * max(heights)]
    return (tall, len(groups) - len(tall)) if len(tall) >= len(VIEWS) else (groups, 0)


# --- verdict ----------------------------------------------------------------------------------------------------------


def _what_is_wrong(figures: tuple[Figure, ...], width: int, height: int) -> tuple[str, int | None]:
    """The first reason why these are no three views, and the box to blame; ("", None) when all is well."""
    boxes = [_box_index(figure, width) for figure in figures]
    if max(figure.height for figure in figures) < 0.25 * height:
        return "the figures fill less than a quarter of the sheet's height: give a sheet that they fill", None
    if len(figures) == 1 and figures[0].width < 0.5 * width:
        return "only one figure was found: a sheet needs three views of it side by side (front, side, back)", None
    if len(figures) < len(VIEWS):
        wide = next((i for i, figure in enumerate(figures) if _spans(figure, width)), None)
        if wide is not None:
            first = min(_box_index_at(figures[wide].box[0] + 0.1 * figures[wide].width, width), 1)
            return (
                f"the {VIEWS[first]} and {VIEWS[first + 1]} figures are merged: there is no gutter between them",
                first,
            )
        missing = next(k for k in range(len(VIEWS)) if k not in boxes)
        widths = sorted(figure.width for figure in figures)
        state = "is empty or its figure is merged with its neighbour" if widths[-1] > 1.25 * widths[0] else "is empty"
        return f"the {VIEWS[missing]} box {state}: {len(figures)} figures were found instead of three", missing
    if len(figures) > len(VIEWS):
        doubled = next((k for k in range(len(VIEWS)) if boxes.count(k) > 1), None)
        place = f"the {VIEWS[doubled]} box holds more than one figure" if doubled is not None else "there are too many"
        return f"{place}: {len(figures)} figures were found instead of three", doubled
    return _uneven(figures, boxes)


def _uneven(figures: tuple[Figure, ...], boxes: list[int]) -> tuple[str, int | None]:
    heights = [figure.height for figure in figures]
    small = int(np.argmin(heights))
    if heights[small] < SMALL_FIGURE * max(heights):
        share = round(100 * heights[small] / max(heights))
        return f"the {VIEWS[small]} figure is only {share} % as tall as the others", small
    centres = [sum(figure.core) / 2 for figure in figures]
    steps = [right - left for left, right in pairwise(centres)]
    if max(steps) > UNEVEN_SPACING * min(steps) and len(set(boxes)) < len(VIEWS):
        doubled = next(k for k in boxes if boxes.count(k) > 1)
        return f"the {VIEWS[doubled]} box holds two figures and another box is empty", doubled
    for i, figure in enumerate(figures):
        others = [other.width for j, other in enumerate(figures) if j != i]
        if figure.width > 1.5 * max(others) and _is_pair(figure):
            return f"the {VIEWS[i]} box holds two figures that touch", i
    return "", None


def _is_pair(figure: Figure) -> bool:
    """Whether a figure falls into two bodies of equal height side by side: a deep valley in its column profile."""
    x0, y0, x1, y1 = figure.box
    profile = ndimage.uniform_filter1d(figure.mask[y0:y1, x0:x1].sum(axis=0).astype(float), max(3, figure.width // 20))
    for cut in range(figure.width // 4, figure.width - figure.width // 4):
        left, right = profile[:cut], profile[cut:]
        share = left.sum() / profile.sum()
        if 0.3 < share < 0.7 and profile[cut] < 0.45 * min(left.max(), right.max()):
            tall = [np.flatnonzero(part.any(axis=1)) for part in _halves(figure, cut)]
            return all(len(rows) > 0.75 * figure.height for rows in tall)
    return False


def _halves(figure: Figure, cut: int) -> tuple[Mask, Mask]:
    x0, _, x1, _ = figure.box
    return figure.mask[:, x0 : x0 + cut], figure.mask[:, x0 + cut : x1]


def _spans(figure: Figure, width: int) -> bool:
    """Whether a figure fills the middles of two neighbouring boxes."""
    return any(figure.box[0] < width * (k + 0.75) / 3 and figure.box[2] > width * (k + 1.25) / 3 for k in (0, 1))


def edges_touched(figure: Figure, backdrop: Backdrop) -> list[str]:
    """Edges of the sheet, or of the frame drawn around it, that the figure runs along and may be cut off by."""
    left, top, right, bottom = backdrop.frame
    height, width = figure.mask.shape
    contact = {
        "left": (figure.mask[:, left], left),
        "top": (figure.mask[top], top),
        "right": (figure.mask[:, width - 1 - right], right),
        "bottom": (figure.mask[height - 1 - bottom], bottom),
    }
    return [edge for edge, (line, frame) in contact.items() if _runs_along(line, figure.height, frame > 0)]


def _runs_along(line: Mask, figure_height: int, framed: bool) -> bool:
    least = max(2, round((GRAZE_FRAME if framed else GRAZE) * figure_height))
    return bool(np.count_nonzero(line) >= least)


def _edge_warnings(figures: tuple[Figure, ...], backdrop: Backdrop) -> list[str]:
    warnings = []
    for view, figure in zip(VIEWS, figures, strict=True):
        edges = edges_touched(figure, backdrop)
        if edges:
            warnings.append(f"the {view} figure touches the {' and '.join(edges)} edge of the sheet: it may be cut off")
    return warnings


def _fills(figure: Figure, width: int) -> bool:
    """Whether a figure spans the whole sheet, as scenery does."""
    return figure.box[0] <= 0.01 * width and figure.box[2] >= 0.99 * width


def _box_index(figure: Figure, width: int) -> int:
    return _box_index_at(sum(figure.core) / 2, width)


def _box_index_at(x: float, width: int) -> int:
    return min(2, int(3 * x / width))


def _figure(mask: Mask) -> Figure:
    return Figure(_box(mask), mask)


def _box(mask: Mask) -> Box:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _core(profile: np.ndarray) -> tuple[float, float]:
    share = np.cumsum(profile) / max(1, profile.sum())
    return float(np.searchsorted(share, 0.1)), float(np.searchsorted(share, 0.9)) + 1


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Shared length of two intervals as a share of the shorter one."""
    shared = min(a[1], b[1]) - max(a[0], b[0])
    return max(0.0, shared) / max(1e-6, min(a[1] - a[0], b[1] - b[0]))
