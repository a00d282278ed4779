"""Views that are one picture: an adapter would learn one side of a character for three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np
from PIL import Image
from scipy import ndimage

from charengine.figures.find import Figure
from charengine.records import VIEWS

DIFFERENT = 64  # levels of 255 by which a pixel differs: JPEG's noise around an edge is less
SHARE = 2e-3  # of a picture's pixels that may differ so; a face makes ten times as many
SPOT = 6  # pixels that may differ in one place: an eye has more; JPEG's noise lies in single ones
SPOT_SHARE = 1e-4  # the same of a large picture's pixels
ROWS = 8  # every so many are looked at first
SLACK = 2  # pixels by which the boxes of one figure, found twice on a sheet, are apart


def alike_warnings(views: Mapping[str, Image.Image], slack: int = 0) -> tuple[str, ...]:
    """A warning where several views are one picture.

    Args:
        views: by name, RGB.
        slack: how far one may lie beside another, in pixels.
    """
    pixels = {name: np.asarray(image, np.int16) for name, image in views.items()}
    pairs = [pair for pair in combinations(pixels, 2) if _is_one_picture(pixels[pair[0]], pixels[pair[1]], slack)]
    if not pairs:
        return ()
    same = [name for name in views if any(name in pair for pair in pairs)]
    return (
        f"the {', '.join(same[:-1])} and {same[-1]} views are one picture: the adapter learns nothing of the character's other sides "
        "from it; give a picture of each side",
    )


def alike_figures(sheet: Image.Image, figures: Sequence[Figure]) -> tuple[str, ...]:
    """A warning where several figures of a sheet are one picture, each as it stands there: cutting and enlarging them moves edges."""
    plain = sheet.convert("RGB")
    cuts = [plain.crop(figure.box) for figure in figures]
    return alike_warnings(dict(zip(VIEWS, cuts, strict=True)), SLACK)


def _is_one_picture(one: np.ndarray, other: np.ndarray, slack: int) -> bool:
    """Whether two pictures show the same, but for what saving them again changes."""
    apart = [abs(a - b) for a, b in zip(one.shape[:2], other.shape[:2], strict=True)]
    height, width = (min(a, b) - slack for a, b in zip(one.shape[:2], other.shape[:2], strict=True))
    if max(apart) > slack or min(height, width) < 1:
        return False
    shifts = list(product(range(slack + 1), repeat=2))
    first = [one[y : y + height, x : x + width] for y, x in shifts]
    second = [other[y : y + height, x : x + width] for y, x in shifts]
    # one of the two lies at the corner, or is moved against the other along one axis each
    return any(
        _differ_little(a, b)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if all(min(p, q) == 0 for p, q in zip(shifts[i], shifts[j], strict=True))
    )


def _differ_little(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two cuts of one size differ in no more than SHARE of their pixels, and nowhere in an eye's; most of different ones
    show it in a few rows.
    """
    area = one.shape[0] * one.shape[1]
    most: float = SHARE * area
    if np.count_nonzero(_different(one[::ROWS], other[::ROWS])) > most:
        return False
    different = _different(one, other)
    if np.count_nonzero(different) > most:
        return False
    places, _ = ndimage.label(different, structure=np.ones((3, 3)))
    return bool(np.bincount(places[different], minlength=1).max() <= max(SPOT, SPOT_SHARE * area))


def _different(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where they differ."""
    return np.asarray(np.abs(one - other).max(axis=2) > DIFFERENT)
