"""Views cut out of a sheet: one bucket, one scale, no figure cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from charengine.config import CropSettings
from charengine.figures.backdrop import Backdrop, Mask, separate
from charengine.figures.find import Figure, FoundFigures, edges_touched, find_figures
from charengine.pictures import Box
from charengine.records import VIEWS, ViewName

WIDEST_ASPECT = 4.0  # of a bucket, either way
HALO_SHARE = 0.012  # of a figure's height: how far around it the sheet's own pixels are kept


@dataclass(frozen=True)
class View:
    """One view: RGB image and L mask of the bucket's size, its box on the sheet, and its numbers."""

    name: ViewName
    image: Image.Image
    alpha: Image.Image
    source_box: Box
    facts: dict[str, float]


def examine_sheet(image: Image.Image, threshold: int) -> tuple[Backdrop, FoundFigures]:
    """A sheet's background and figures; `image` is RGB, or RGBA with its colours already on the background."""
    alpha = np.asarray(image.getchannel("A")) if image.mode == "RGBA" else None
    backdrop = separate(np.asarray(image.convert("RGB")), threshold, alpha)
    return backdrop, find_figures(backdrop)


# --- cutting ----------------------------------------------------------------------------------------------------------


def cut_views(backdrop: Backdrop, figures: tuple[Figure, ...], settings: CropSettings) -> tuple[View, ...]:
    """The views, all in one bucket and at one scale, so that they train as one batch."""
    margin = settings.margin * max(figure.height for figure in figures)
    width = max(figure.width for figure in figures) + 2 * margin
    height = max(figure.height for figure in figures) + 2 * margin
    bucket = choose_bucket(width, height, settings.bucket_area, settings.bucket_step, settings.upscale)
    scale = min(bucket[0] / width, bucket[1] / height)
    if not settings.upscale:
        scale = min(scale, 1.0)
    return tuple(_cut_view(backdrop, figure, name, bucket, scale) for name, figure in zip(VIEWS, figures, strict=True))


def choose_bucket(width: float, height: float, area: int, step: int, upscale: bool = True) -> tuple[int, int]:
    """The bucket in which a box of this shape is largest; without `upscale`, the smallest that holds the box as it is.

    Args:
        width: of the box that must fit, pixels.
        height: the same.
        area: pixels a bucket may have (as kohya's: at most this, unless no bucket is that small).
        step: both sides are multiples of this.
        upscale: whether the box may be enlarged to fill the bucket.

    Returns:
        width, height.
    """
    sides = range(step, int(WIDEST_ASPECT * math.sqrt(area)) + step, step)
    shapes = [(w, h) for w in sides for h in sides if max(w, h) <= WIDEST_ASPECT * min(w, h)]
    roomy = [] if upscale else [(w, h) for w, h in shapes if w >= width and h >= height and w * h <= area]
    if roomy:
        return min(roomy, key=lambda shape: (shape[0] * shape[1], shape[1]))
    fitting = [(w, h) for w, h in shapes if w * h <= area] or [min(shapes, key=lambda shape: shape[0] * shape[1])]
    return max(fitting, key=lambda shape: (round(min(shape[0] / width, shape[1] / height), 6), shape[0] * shape[1]))


def _cut_view(backdrop: Backdrop, figure: Figure, name: ViewName, bucket: tuple[int, int], scale: float) -> View:
    """One figure on plain background, centred in the bucket."""
    halo = max(3, round(HALO_SHARE * figure.height))
    x0, y0, x1, y1 = _grown_box(figure.box, 3 * halo, figure.mask.shape)
    mask = figure.mask[y0:y1, x0:x1]
    colour = np.array(backdrop.colour, np.float32)
    near = np.asarray(backdrop.pixels[y0:y1, x0:x1])
    flat = near - backdrop.surface[y0:y1, x0:x1] + colour  # a gradient or vignette becomes the one colour
    foreign = (backdrop.figure | backdrop.shadow)[y0:y1, x0:x1] & ~mask
    keep = _soft_halo(mask, foreign, halo)[..., None]
    blended = np.where(mask[..., None], near, flat) * keep + colour * (1 - keep)
    cut = Image.fromarray(blended.clip(0, 255).round().astype(np.uint8))
    soft = Image.fromarray((ndimage.gaussian_filter(mask.astype(np.float32), 0.6) * 255).round().astype(np.uint8))
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    offset = _centred(figure.box, (x0, y0), bucket, scale)
    image = Image.new("RGB", bucket, backdrop.colour)
    image.paste(cut.resize(size, Image.Resampling.LANCZOS), offset)
    alpha = Image.new("L", bucket, 0)
    alpha.paste(soft.resize(size, Image.Resampling.LANCZOS), offset)
    return View(name, image, alpha, figure.box, _view_facts(backdrop, figure, image, scale))


def _centred(box: Box, origin: tuple[int, int], bucket: tuple[int, int], scale: float) -> tuple[int, int]:
    """Where the cut's corner goes so that the figure's box is in the middle of the bucket."""
    x = bucket[0] / 2 - scale * ((box[0] + box[2]) / 2 - origin[0])
    y = bucket[1] / 2 - scale * ((box[1] + box[3]) / 2 - origin[1])
    return round(x), round(y)


def _soft_halo(mask: Mask, foreign: Mask, halo: int) -> np.ndarray:
    """1 on the figure, falling to 0 within a halo around it; where neighbours or shadows are, after one pixel."""
    away = ndimage.distance_transform_edt(~mask)
    keep = np.clip(2 - away / halo, 0, 1)
    if foreign.any():
        keep = np.where(ndimage.binary_dilation(foreign, iterations=2), np.clip(1.5 - away / 2, 0, 1), keep)
    return np.asarray(keep, dtype=np.float32)


def _grown_box(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    return max(0, box[0] - by), max(0, box[1] - by), min(shape[1], box[2] + by), min(shape[0], box[3] + by)


def _view_facts(backdrop: Backdrop, figure: Figure, image: Image.Image, scale: float) -> dict[str, float]:
    return {
        "scale": scale,
        "figure_height": float(figure.height),
        "figure_width": float(figure.width),
        "figure_share": figure.area / (figure.width * figure.height),
        "edge_touched": float(bool(edges_touched(figure, backdrop))),
        "sharpness": float(ndimage.laplace(np.asarray(image.convert("L"), np.float32)).var()),
    }
