"""Cuts the three views out of a sheet: finds the figures, pads them to one training bucket, never cuts a figure."""

from __future__ import annotations

import io
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from charengine.backdrop import Backdrop, Mask, separate
from charengine.config import CropSettings
from charengine.errors import SheetRejected
from charengine.figures import Figure, Found, edges_touched, find_figures
from charengine.records import VIEWS, Ref, SheetRecord, ViewName, ViewRecord, ViewsRecord
from charengine.store import Store, write_atomically
from charengine.template import Box

STAGE_VERSION = 1

WIDEST_ASPECT = 4.0  # of a bucket, either way
COLOURS = ("#d62828", "#1d70b8", "#2a9d3a", "#b8860b", "#7b2cbf")
HALO_SHARE = 0.012  # of a figure's height: how far around it the sheet's own pixels are kept
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class View:
    """One view: RGB image and L mask of the bucket's size, its box on the sheet, and its numbers."""

    name: ViewName
    image: Image.Image
    alpha: Image.Image
    source_box: Box
    facts: dict[str, float]


def crop_views(sheet: SheetRecord, settings: CropSettings, store: Store) -> ViewsRecord:
    """Cut the front, side and back view out of a sheet.

    Raises:
        SheetRejected: a figure is missing, doubled or merged; carries an annotated picture and the box to blame.
    """
    image = Image.open(io.BytesIO(store.get(sheet.image)))
    backdrop, found = examine(image, settings.threshold)
    overlay = draw_overlay(image, found)
    if found.problem:
        given = sheet.source == "given"
        raise SheetRejected(found.problem, keep_picture(overlay, store), found.blamed, given=given)
    views = cut_views(backdrop, found.figures, settings)
    return ViewsRecord(
        views=tuple(_stored(view, store) for view in views),
        background=backdrop.colour,
        overlay=store.put(png(overlay), "views.png"),
        facts=measure(backdrop, found),
        warnings=found.warnings + _upscale_warning(views, settings),
    )


def examine(image: Image.Image, threshold: int) -> tuple[Backdrop, Found]:
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


# --- numbers ----------------------------------------------------------------------------------------------------------


def measure(backdrop: Backdrop, found: Found) -> dict[str, float]:
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


def _view_facts(backdrop: Backdrop, figure: Figure, image: Image.Image, scale: float) -> dict[str, float]:
    return {
        "scale": scale,
        "figure_height": float(figure.height),
        "figure_width": float(figure.width),
        "figure_share": figure.area / (figure.width * figure.height),
        "edge_touched": float(bool(edges_touched(figure, backdrop))),
        "sharpness": float(ndimage.laplace(np.asarray(image.convert("L"), np.float32)).var()),
    }


def _core_width(figure: Figure) -> float:
    left, right = figure.core
    return right - left


def _upscale_warning(views: tuple[View, ...], settings: CropSettings) -> tuple[str, ...]:
    scale = views[0].facts["scale"]
    if not settings.upscale or scale < 2.5:
        return ()
    return (f"the figures are small and were enlarged {scale:.1f} times: a larger sheet would train sharper pictures",)


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_overlay(image: Image.Image, found: Found) -> Image.Image:
    """The sheet with the found boxes and view names on it, and the problem, if there is one, written at the top."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    line = max(2, min(picture.size) // 250)
    letters = max(12, picture.height // 40)
    font = ImageFont.load_default(size=letters)
    names = VIEWS if not found.problem else tuple(f"figure {i + 1}" for i in range(len(found.figures)))
    for figure, name, colour in zip(found.figures, names, COLOURS * 20, strict=False):
        x0, y0, x1, y1 = figure.box
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=line)
        _label(draw, (x0 + line, y0 + line), name, colour, font)
    if found.problem:
        draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=COLOURS[0], width=2 * line)
        _label(
            draw, (2 * line, picture.height - 2 * line - 1.4 * letters), found.problem.split(":")[0], COLOURS[0], font
        )
    return picture


def _label(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str, font: Font) -> None:
    draw.rectangle(draw.textbbox(at, text, font=font), fill=colour)
    draw.text(at, text, fill="white", font=font)


def keep_picture(picture: Image.Image, store: Store) -> Path:
    """Put a rejected sheet's picture in the store and beside it as a file that a person can open; the file's path."""
    data = png(picture)
    ref = store.put(data, "rejected.png")
    folder = Path(store.root) if store.local else Path(tempfile.gettempdir()) / "charengine"
    path = folder / "rejected" / f"{ref.sha256[:12]}.png"
    write_atomically(path, data)
    return path.resolve()


def png(image: Image.Image) -> bytes:
    """The image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _stored(view: View, store: Store) -> ViewRecord:
    image: Ref = store.put(png(view.image), f"{view.name}.png")
    alpha: Ref = store.put(png(view.alpha), f"{view.name}_mask.png")
    return ViewRecord(
        view=view.name,
        image=image,
        alpha=alpha,
        width=view.image.width,
        height=view.image.height,
        source_box=view.source_box,
        facts=view.facts,
    )
