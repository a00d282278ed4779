"""Tells a sheet's figures from its background: rules erased, background modelled as a surface, outlines filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

BAND_SHARE = 0.04  # of the shorter side: where the background is sure to be found
RULE_SHARE = 0.012  # of the shorter side: thicker than this is no rule
RULE_REACH = 0.05  # of a side: how far a rule drifts from its place, and how near its end comes to the sheet's edge
RULE_CONTRAST = 80.0
RULE_CHROMA = 48.0
FAINTEST = 6.0  # 0-255; fainter differences are noise even on a clean sheet


@dataclass(frozen=True)
class Backdrop:
    """A sheet taken apart.

    Args:
        pixels: (h, w, 3) float32 0-255, the sheet without its rules.
        surface: (h, w, 3) float32 0-255, the background everywhere, also behind the figures.
        colour: median background, RGB 0-255.
        figure: (h, w) True on the figures.
        plainness: 0-1, share of the sheet's border that the surface explains; low on a photo.
        rules: how many template rules were erased.
    """

    pixels: Pixels
    surface: Pixels
    colour: tuple[int, int, int]
    figure: Mask
    plainness: float
    rules: int


def separate(image: NDArray[np.uint8], threshold: int, alpha: NDArray[np.uint8] | None = None) -> Backdrop:
    """Find the background of a sheet and what stands before it.

    Args:
        image: (h, w, 3) RGB.
        threshold: 0-255, how far from the background a pixel of a figure is.
        alpha: (h, w), if the sheet has one; it then decides alone.
    """
    pixels = image.astype(np.float32)
    rough = _commonest_colour(_band(pixels))
    pixels, rules = _erase_rules(pixels, rough)
    surface = _fit_surface(pixels, rough)
    distance = np.abs(pixels - surface).max(axis=2)
    border = _band(distance)
    if alpha is not None:
        figure = alpha > 127
    else:
        figure = _find_figure(pixels, surface, distance, float(threshold), border)
    behind = surface[::8, ::8][~figure[::8, ::8]]
    colour = np.median(behind if len(behind) else surface.reshape(-1, 3), axis=0).round().astype(int)
    return Backdrop(
        pixels=pixels,
        surface=surface,
        colour=(int(colour[0]), int(colour[1]), int(colour[2])),
        figure=figure,
        plainness=float((border < threshold).mean()),
        rules=rules,
    )


def _band(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values near the sheet's edge, flattened to (n, …)."""
    height, width = values.shape[:2]
    band = max(8, round(min(height, width) * BAND_SHARE))
    parts = (values[:band], values[-band:], values[band:-band, :band], values[band:-band, -band:])
    return np.concatenate([part.reshape(-1, *values.shape[2:]) for part in parts])


def _commonest_colour(samples: Pixels) -> Pixels:
    """Median of the fullest cell of a coarse RGB histogram: drawn rules and a touching figure do not move it."""
    cells = (samples // 32).astype(np.int32) @ np.array([64, 8, 1])
    fullest = np.bincount(cells).argmax()
    return np.median(samples[cells == fullest], axis=0).astype(np.float32)


# --- rules ------------------------------------------------------------------------------------------------------------


def _erase_rules(pixels: Pixels, background: Pixels) -> tuple[Pixels, int]:
    """Paint template rules over with what is beside them; (pixels, how many there were)."""
    upright, count = _erase_upright_rules(pixels, background, expected=(0.0, 1 / 3, 2 / 3, 1.0))
    turned, more = _erase_upright_rules(upright.transpose(1, 0, 2), background, expected=(0.0, 1.0))
    return turned.transpose(1, 0, 2), count + more


def _erase_upright_rules(pixels: Pixels, background: Pixels, expected: tuple[float, ...]) -> tuple[Pixels, int]:
    thin = _thin_strokes(pixels, background)
    columns = _rule_columns(thin, expected)
    if not columns.any():
        return pixels, 0
    guard = max(1, round(min(thin.shape) * 0.002))
    out = pixels.copy()
    labels, count = ndimage.label(columns)
    for (span,) in ndimage.find_objects(labels):
        _paint_over(out, thin, span.start, span.stop, guard)
    return out, count


def _thin_strokes(pixels: Pixels, background: Pixels) -> Mask:
    """Colourless pixels far from the background whose horizontal run is no wider than a rule."""
    contrast = np.abs(pixels.mean(axis=2) - background.mean()) > RULE_CONTRAST
    contrast &= np.ptp(pixels, axis=2) < RULE_CHROMA
    widest = max(4, round(min(contrast.shape) * RULE_SHARE)) + 1
    return contrast & ~_opened(contrast, 1, widest)


def _rule_columns(thin: Mask, expected: tuple[float, ...]) -> NDArray[np.bool_]:
    """Columns crossed by a long straight thin stroke that ends near the sheet's edge, where a rule is expected."""
    height, width = thin.shape
    near = ndimage.maximum_filter1d(thin.view(np.uint8), 3, axis=1)
    coverage = near.mean(axis=0)
    reach = round(height * RULE_REACH)
    ends = near[:reach].any(axis=0) | near[-reach:].any(axis=0)
    place = np.arange(width) / max(1, width - 1)
    expected_here = np.min([np.abs(place - at) for at in expected], axis=0) < RULE_REACH
    columns = (expected_here & ends & (coverage > 0.2)) | (coverage > 0.92)
    return np.asarray(columns & thin.any(axis=0))


def _paint_over(pixels: Pixels, thin: Mask, start: int, stop: int, guard: int) -> None:
    """In place: each row of the rule takes the colour beside it, left half from the left, right half from the right."""
    width = thin.shape[1]
    rows = ndimage.binary_dilation(thin[:, start:stop].any(axis=1), iterations=2)
    left, right = max(0, start - guard), min(width, stop + guard)
    before = pixels[:, max(0, left - 2) : left].mean(axis=1) if left > 1 else None
    after = pixels[:, right : right + 2].mean(axis=1) if right < width - 1 else None
    middle = (left + right) // 2
    for columns, near, far in ((slice(left, middle), before, after), (slice(middle, right), after, before)):
        source = near if near is not None else far
        if source is not None:
            pixels[rows, columns] = source[rows, None]


# --- background -------------------------------------------------------------------------------------------------------


def _fit_surface(pixels: Pixels, rough: Pixels) -> Pixels:
    """A quadratic surface per channel through the background: follows a flat colour, a gradient or a vignette."""
    height, width = pixels.shape[:2]
    step = max(1, min(height, width) // 128)
    sample = ndimage.uniform_filter(pixels, (step, step, 1))[::step, ::step] if step > 1 else pixels
    terms = _quadratic_terms(*sample.shape[:2])
    rim = np.ones(sample.shape[:2], bool)
    band = max(2, round(min(rim.shape) * BAND_SHARE))
    rim[band:-band, band:-band] = False
    kept = rim & (np.abs(sample - rough).max(axis=2) < 48)
    if kept.sum() < 32:
        return np.broadcast_to(rough, pixels.shape).astype(np.float32)
    weights = _least_squares(terms, sample, kept)
    for _ in range(4):
        residual = np.abs(terms @ weights - sample).max(axis=2)
        # tight enough to leave a pale costume out, wide enough for what a quadratic misses of a vignette
        limit = float(np.clip(4 * np.median(residual[kept]), 4.0, 24.0))
        reachable = _touching_border(residual < limit)
        if reachable.sum() < 32:
            break
        weights = _least_squares(terms, sample, reachable)
    return np.clip(_quadratic_terms(height, width) @ weights, 0, 255).astype(np.float32)


def _quadratic_terms(height: int, width: int) -> NDArray[np.float32]:
    y, x = np.meshgrid(
        np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32), indexing="ij"
    )
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)


def _least_squares(terms: NDArray[np.float32], sample: Pixels, kept: Mask) -> NDArray[np.float32]:
    return np.asarray(np.linalg.lstsq(terms[kept], sample[kept], rcond=None)[0], dtype=np.float32)


# --- figures ----------------------------------------------------------------------------------------------------------


def _find_figure(pixels: Pixels, surface: Pixels, distance: Pixels, threshold: float, border: Pixels) -> Mask:
    """Pixels that no path of background colour joins to the border, so that white inside an outline is kept."""
    height = distance.shape[0]
    gap = max(1, round(height * 0.004))
    strong = distance > threshold
    calm = border[border < threshold]
    faint = threshold
    if calm.size:  # the median too: a pale sleeve in the border band must not count as noise
        noise = min(1.5 * float(np.percentile(calm, 99)), 8 * float(np.median(calm)))
        faint = float(np.clip(noise, FAINTEST, threshold))
    solid = _enclosed(strong, gap)
    wide = _enclosed(_grown(strong, distance > faint), gap)
    figure = solid | _opened(wide & ~solid, 2 * gap + 1, 2 * gap + 1)
    return _without_shadow(figure, pixels, surface, gap)


def _enclosed(barrier: Mask, gap: int) -> Mask:
    """The barrier and all it encloses; breaks in an outline of up to 2 × gap pixels count as closed."""
    framed = np.pad(barrier, gap + 1)  # so that the flood also runs around a figure at the sheet's edge
    outside = _dilated(_touching_border(~_dilated(framed, gap)), gap) & ~framed
    inside = slice(gap + 1, -gap - 1)
    return ~outside[inside, inside]


def _grown(seeds: Mask, allowed: Mask) -> Mask:
    """Connected parts of `allowed` that hold a seed (hysteresis)."""
    labels, count = ndimage.label(allowed | seeds, structure=np.ones((3, 3)))
    hit = np.zeros(count + 1, bool)
    hit[np.unique(labels[seeds])] = True
    hit[0] = False
    return np.asarray(hit[labels])


def _without_shadow(figure: Mask, pixels: Pixels, surface: Pixels, gap: int) -> Mask:
    """Take away soft shadows on the floor: background darkened evenly, without edges, joined to the background."""
    rows = np.flatnonzero(figure.any(axis=1))
    if not len(rows):
        return figure
    top = rows[-1] - (rows[-1] - rows[0]) // 5
    part = np.s_[max(0, top) :]
    smooth = ndimage.uniform_filter(pixels[part], (3, 3, 1))
    ratio = (smooth + 1) / (surface[part] + 1)
    grey = smooth.mean(axis=2)
    steep = np.hypot(ndimage.sobel(grey, axis=0), ndimage.sobel(grey, axis=1)) / 8
    shadow = (ratio.mean(axis=2) < 0.99) & (ratio.mean(axis=2) > 0.45) & (np.ptp(ratio, axis=2) < 0.06)
    shadow &= steep < 6 * max(1.0, 1024 / figure.shape[0])
    outside = ~figure[part]
    labels, count = ndimage.label(shadow | outside)
    reached = np.zeros(count + 1, bool)
    reached[np.unique(labels[outside])] = True
    reached[0] = False
    kept = figure.copy()
    kept[part] &= ~(reached[labels] & shadow)
    kept[part] &= _dilated(_opened(kept, 2 * gap + 1, 2 * gap + 1), gap)[part]
    return kept


def _touching_border(mask: Mask) -> Mask:
    """Connected parts of the mask (4-neighbours) that reach the image's edge."""
    labels, count = ndimage.label(mask)
    hit = np.zeros(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        hit[np.unique(edge)] = True
    hit[0] = False
    return np.asarray(hit[labels])


def _dilated(mask: Mask, radius: int) -> Mask:
    return np.asarray(ndimage.maximum_filter(mask.view(np.uint8), 2 * radius + 1)).astype(bool)


def _opened(mask: Mask, height: int, width: int) -> Mask:
    """Binary opening by a rectangle."""
    thinner = ndimage.minimum_filter(mask.view(np.uint8), (height, width), mode="constant")
    # the mirrored origin makes the opening exact for even sizes too
    shift = (1 - height % 2, 1 - width % 2)
    return (
        np.asarray(ndimage.maximum_filter(thinner, (height, width), origin=(-shift[0], -shift[1]))).astype(bool) & mask
    )
