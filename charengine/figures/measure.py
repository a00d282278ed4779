"""Quality numbers of a whole sheet."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from charengine.figures.backdrop import Backdrop
from charengine.figures.find import Figure, FoundFigures, edges_touched

# --- numbers ----------------------------------------------------------------------------------------------------------


def measure_sheet(backdrop: Backdrop, found: FoundFigures) -> dict[str, float]:
    """Quality numbers of a whole sheet; shares are 0-1, pixels are the sheet's own."""
    figures = found.figures
    front, side, back = figures
    heights = [figure.height for figure in figures]
    gutters = [right.box[0] - left.box[2] for left, right in ((front, side), (side, back))]
    return {
        "gutter_min": float(min(gutters)),
        "height_spread": (max(heights) - min(heights)) / max(heights),
        "side_to_front_width": side.width / front.width,
        "side_to_front_core": _core_width(side) / _core_width(front),
        "figure_share": float(backdrop.figure.mean()),
        "pieces": float(found.pieces),
        "rules_erased": float(backdrop.rules),
        "plainness": backdrop.plainness,
        "edges_touched": float(sum(bool(edges_touched(figure, backdrop)) for figure in figures)),
        "colour_distance": max(
            colour_distance(backdrop, one, other) for one, other in ((front, side), (front, back), (side, back))
        ),
        "mirror_likeness": mirror_likeness(backdrop, front, back),
    }


def colour_distance(backdrop: Backdrop, one: Figure, other: Figure) -> float:
    """0 (the same colours) to 1 (none shared): half the L1 distance of smoothed 8×8×8 RGB histograms."""
    return float(np.abs(_histogram(backdrop, one) - _histogram(backdrop, other)).sum() / 2)


def mirror_likeness(backdrop: Backdrop, front: Figure, back: Figure) -> float:
    """-1 to 1: correlation of the back's inner detail with that of the flipped front; near 1 = a mirrored front."""
    flipped = _detail(backdrop, front)[:, ::-1]
    behind = _detail(backdrop, back)
    both = np.isfinite(flipped) & np.isfinite(behind)
    if both.sum() < 64:
        return 0.0
    a, b = flipped[both], behind[both]
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 1e-6 else 0.0


def _detail(backdrop: Backdrop, figure: Figure, size: tuple[int, int] = (96, 288)) -> np.ndarray:
    """High-pass grey of a figure, scaled to one size, NaN outside its eroded mask: what is drawn on it, not its shape."""
    x0, y0, x1, y1 = figure.box
    grey = backdrop.pixels[y0:y1, x0:x1].mean(axis=2)
    mask = figure.mask[y0:y1, x0:x1]
    grey = np.where(mask, grey, grey[mask].mean())
    small = np.asarray(Image.fromarray(grey.astype(np.float32)).resize(size, Image.Resampling.BOX))
    inside = np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BOX)) == 255
    inside = ndimage.binary_erosion(inside, iterations=3)
    detail = small - ndimage.gaussian_filter(small, 6)
    return np.where(inside, detail, np.nan)


def _histogram(backdrop: Backdrop, figure: Figure) -> np.ndarray:
    samples = backdrop.pixels[figure.mask][:: max(1, figure.area // 20_000)]
    counts, _ = np.histogramdd(samples, bins=(8, 8, 8), range=((0, 256),) * 3)
    smooth = ndimage.gaussian_filter(counts, 0.7, mode="nearest")
    return np.asarray(smooth / smooth.sum())


def _core_width(figure: Figure) -> float:
    left, right = figure.core
    return right - left
