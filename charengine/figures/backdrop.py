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
RULE_CONTRAST = 28.0  # a rule that went through a VAE may be pale
RULE_CHROMA = 48.0
SHARPEST_SHADOW = 0.17  # share of its depth that a shadow changes by in a pixel; a boot's edge changes faster
TALLEST_SHADOW = 0.14  # of the figures' height: what is taller does not lie on the floor
FAINTEST = 6.0  # 0-255; fainter differences are noise even on a clean sheet


@dataclass(frozen=True)
class Backdrop:
    """A sheet taken apart.

    Args:
        pixels: (h, w, 3) float32 0-255, the sheet without its rules.
        surface: (h, w, 3) float32 0-255, the background everywhere, also behind the figures.
        colour: median background, RGB 0-255.
        figure: (h, w) True on the figures.
        shadow: (h, w) True on soft shadows on the floor.
        frame: left, top, right, bottom: how many pixels at each edge an outer rule took.
        plainness: 0-1, share of the sheet's border that the surface explains; low on a photo.
        rules: how many template rules were erased.
    """

    pixels: Pixels
    surface: Pixels
    colour: tuple[int, int, int]
    figure: Mask
    shadow: Mask
    frame: tuple[int, int, int, int]
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
    pixels, rules, frame = _erase_rules(pixels, rough)
    surface = _fit_surface(pixels, rough)
    distance = _largest(np.abs(pixels - surface))
    border = _band(distance)
    if alpha is not None:
        figure, shadow = alpha > 127, np.zeros(alpha.shape, bool)
    else:
        figure = _find_figure(distance, float(threshold), border)
        shadow = _soft_shadow(figure, pixels, surface)
        if shadow.any():  # it may have closed the gap between the feet: look again without it
            distance[shadow] = 0
            figure = _tidied(_find_figure(distance, float(threshold), border) & ~shadow)
    behind = surface[::8, ::8][~figure[::8, ::8]]
    colour = np.median(behind if len(behind) else surface.reshape(-1, 3), axis=0).round().astype(int)
    return Backdrop(
        pixels=pixels,
        surface=surface,
        colour=(int(colour[0]), int(colour[1]), int(colour[2])),
        figure=figure,
        shadow=shadow,
        frame=frame,
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
    colour: Pixels = np.median(samples[cells == fullest], axis=0).astype(np.float32)
    return colour


# --- rules ------------------------------------------------------------------------------------------------------------


def _erase_rules(pixels: Pixels, background: Pixels) -> tuple[Pixels, int, tuple[int, int, int, int]]:
    """Paint template rules over with what is beside them; (pixels, how many there were, the frame they left)."""
    contrast = np.abs(_grey(pixels) - background.mean()) > RULE_CONTRAST
    ink = contrast & (_largest(pixels) - _smallest(pixels) < RULE_CHROMA)
    out = pixels.copy()
    upright = _erase_upright_rules(out, ink, background, expected=(0.0, 1 / 3, 2 / 3, 1.0))
    level = _erase_upright_rules(out.transpose(1, 0, 2), ink.T, background, expected=(0.0, 1.0))
    left, right = _frame(upright, ink.shape[1])
    top, bottom = _frame(level, ink.shape[0])
    return out, len(upright) + len(level), (left, top, right, bottom)


def _erase_upright_rules(
    pixels: Pixels, ink: Mask, background: Pixels, expected: tuple[float, ...]
) -> list[tuple[int, int]]:
    """Erase vertical rules in place; the columns (start, stop) each one took."""
    widest = max(6, round(min(ink.shape) * RULE_SHARE)) + 1
    thin = ink & ~_opened(ink, 1, widest)
    columns = _rule_columns(thin, expected)
    width, guard = thin.shape[1], max(1, round(min(thin.shape) * 0.002))
    labels, _ = ndimage.label(columns)
    spans = []
    for (span,) in ndimage.find_objects(labels):
        rows = ndimage.binary_dilation(thin[:, span].any(axis=1), iterations=2)
        start, stop = max(0, span.start - guard), min(width, span.stop + guard)
        spans.append((start, stop))
        if _is_outer(start, stop, width):  # nothing is known beyond a frame
            pixels[rows, start:stop] = background
        else:
            _paint_over(pixels, rows, start, stop)
    return spans


def _is_outer(start: int, stop: int, width: int) -> bool:
    return start < RULE_REACH * width or stop > (1 - RULE_REACH) * width


def _frame(spans: list[tuple[int, int]], width: int) -> tuple[int, int]:
    """How far the outer rules reach in from the two edges."""
    low = max((stop for _, stop in spans if stop <= 2 * RULE_REACH * width), default=0)
    high = max((width - start for start, _ in spans if start >= (1 - 2 * RULE_REACH) * width), default=0)
    return low, high


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


def _paint_over(pixels: Pixels, rows: NDArray[np.bool_], start: int, stop: int) -> None:
    """In place: each row of the rule takes the colour beside it, left half from the left, right half from the right."""
    middle = (start + stop) // 2
    pixels[rows, start:middle] = pixels[rows, max(0, start - 2) : start].mean(axis=1)[:, None]
    pixels[rows, middle:stop] = pixels[rows, stop : stop + 2].mean(axis=1)[:, None]


# --- background -------------------------------------------------------------------------------------------------------


def _fit_surface(pixels: Pixels, rough: Pixels) -> Pixels:
    """A quadratic surface per channel through the background: follows a flat colour, a gradient or a vignette."""
    height, width = pixels.shape[:2]
    step = max(1, min(height, width) // 128)
    sample = pixels[: height // step * step, : width // step * step]
    sample = sample.reshape(height // step, step, width // step, step, 3).mean(axis=(1, 3), dtype=np.float32)
    terms = _quadratic_terms(*sample.shape[:2])
    rim = np.ones(sample.shape[:2], bool)
    band = max(2, round(min(rim.shape) * BAND_SHARE))
    rim[band:-band, band:-band] = False
    kept = rim & (_largest(np.abs(sample - rough)) < 48)
    if kept.sum() < 32:
        return np.broadcast_to(rough, pixels.shape).astype(np.float32)
    weights = _least_squares(terms, sample, kept)
    for _ in range(4):
        residual = _largest(np.abs(terms @ weights - sample))
        # tight enough to leave a pale costume out, wide enough for what a quadratic misses of a vignette
        limit = float(np.clip(4 * np.median(residual[kept]), 4.0, 24.0))
        reachable = _touching_border(residual < limit)
        if reachable.sum() < 32:
            break
        weights = _least_squares(terms, sample, reachable)
    surface: Pixels = np.clip(_quadratic_terms(height, width) @ weights, 0, 255).astype(np.float32)
    return surface


def _quadratic_terms(height: int, width: int) -> NDArray[np.float32]:
    y, x = np.meshgrid(
        np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32), indexing="ij"
    )
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)


def _least_squares(terms: NDArray[np.float32], sample: Pixels, kept: Mask) -> NDArray[np.float32]:
    return np.asarray(np.linalg.lstsq(terms[kept], sample[kept], rcond=None)[0], dtype=np.float32)


# --- figures ----------------------------------------------------------------------------------------------------------


def _find_figure(distance: NDArray[np.float32], threshold: float, border: NDArray[np.float32]) -> Mask:
    """Pixels that no path of background colour joins to the border, so that white inside an outline is kept."""
    gap = _gap(distance.shape[0])
    strong = distance > threshold
    calm = border[border < threshold]
    faint = threshold
    if calm.size:  # the median too: a pale sleeve in the border band must not count as noise
        noise = min(1.5 * float(np.percentile(calm, 99)), 8 * float(np.median(calm)))
        faint = float(np.clip(noise, FAINTEST, threshold))
    solid = _enclosed(strong, gap)
    weak = _reached((distance > faint) | strong, strong, diagonal=True)
    wide = _enclosed(weak, gap)
    return solid | _opened(wide & ~solid, 2 * gap + 1, 2 * gap + 1)


def _gap(height: int) -> int:
    """Half the widest break in an outline that counts as closed, pixels."""
    return max(1, round(height * 0.004))


def _enclosed(barrier: Mask, gap: int) -> Mask:
    """The barrier and all it encloses; a break of up to 2 × gap pixels in an outline counts as closed."""
    tight = ~_touching_border(~barrier)
    framed = np.pad(barrier, gap + 1)  # so that the flood also runs around a figure at the sheet's edge
    outside = _dilated(_touching_border(~_dilated(framed, gap)), gap) & ~framed
    inside = slice(gap + 1, -gap - 1)
    # narrow gaps (between arm and body) are closed too: only what is wider than them was a broken outline
    return tight | _opened(~outside[inside, inside] & ~tight, 4 * gap + 1, 4 * gap + 1)


def _soft_shadow(figure: Mask, pixels: Pixels, surface: Pixels) -> Mask:
    """Soft flat shadows on the floor: background darkened evenly, without edges, joined to the background."""
    shadow = np.zeros_like(figure)
    rows = np.flatnonzero(figure.any(axis=1))
    if not len(rows):
        return shadow
    tall = int(rows[-1] - rows[0])
    part = np.s_[rows[-1] - tall // 5 :]
    ratio = (ndimage.uniform_filter(pixels[part], (3, 3, 1)) + 1) / (surface[part] + 1)
    level = _grey(ratio)
    even = (level < 0.99) & (level > 0.45) & (_largest(ratio) - _smallest(ratio) < 0.06)
    slope = np.hypot(ndimage.sobel(level, axis=0), ndimage.sobel(level, axis=1)) / 8
    depth = np.maximum(1 - ndimage.minimum_filter(level, 9), 0.03)
    even &= slope < SHARPEST_SHADOW * depth
    even &= _reached(even | ~figure[part], ~figure[part])
    broad = _opened(even, 5, 5)  # without the fringes of the figure's own edges, which would tie a shadow to a leg
    labels, _ = ndimage.label(broad)
    for i, (height, _) in enumerate(ndimage.find_objects(labels)):
        if height.stop - height.start > TALLEST_SHADOW * tall:
            broad[labels == i + 1] = False
    shadow[part] = _dilated(broad, 2) & even
    return shadow


def _tidied(figure: Mask) -> Mask:
    """Without the slivers that a removed shadow leaves around the feet."""
    gap = _gap(figure.shape[0])
    lower = np.flatnonzero(figure.any(axis=1))[-1] * 3 // 4 if figure.any() else 0
    kept = figure.copy()
    kept[lower:] &= _dilated(_opened(figure, 2 * gap + 1, 2 * gap + 1), gap)[lower:]
    return kept


def _touching_border(mask: Mask) -> Mask:
    """Connected parts of the mask (4-neighbours) that reach the image's edge."""
    edge = np.zeros_like(mask)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    return _reached(mask, edge)


def _reached(mask: Mask, seeds: Mask, diagonal: bool = False) -> Mask:
    """Connected parts of the mask that hold a seed."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)) if diagonal else None)
    hit = np.zeros(count + 1, bool)
    hit[np.unique(labels[seeds])] = True
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


def _largest(values: Pixels) -> NDArray[np.float32]:
    """Over the three channels; far quicker than a reduction along a short axis."""
    return np.maximum(np.maximum(values[..., 0], values[..., 1]), values[..., 2])


def _smallest(values: Pixels) -> NDArray[np.float32]:
    return np.minimum(np.minimum(values[..., 0], values[..., 1]), values[..., 2])


def _grey(values: Pixels) -> NDArray[np.float32]:
    return (values[..., 0] + values[..., 1] + values[..., 2]) / np.float32(3)
