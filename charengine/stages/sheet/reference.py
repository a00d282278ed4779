"""One picture of a character, from which a sheet is drawn: looked at once, refused when no one character can be seen in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from charengine.errors import BadInput
from charengine.figures.backdrop import Backdrop, separate
from charengine.figures.find import STRAY_SHARE, Figure, edges_touched, standing_apart
from charengine.models import Onlooker
from charengine.pictures import Box, Picture, cuts_out, open_image, padded, png, read_picture
from charengine.records import Record, Ref
from charengine.stage import Given, Stage
from charengine.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

LABEL = "--reference"
SMALLEST_SIDE = 64
LARGEST_SIDE = 1536  # the edit model looks at about a megapixel
LOOKED_AT = 768  # pixels of the longer side, where figures are told from a background
THRESHOLD = 24  # 0-255: how far from a plain background a figure's pixel is
PLAIN = 0.9  # share of the border that is one background: only then figures are told from it by their colour
MARGIN = 0.06  # of the figure's height, left around it
SMALLEST_SHARE = 0.02  # of the picture: what is smaller is no figure
UPRIGHT = 1.9  # height / width of a figure that is shown as the views of a sheet are
WHITE_ENOUGH = 235
EDGES = 4
CUT_OFF = "the figure runs along an edge of the reference: it may be cut off, and what is missing was made up"
LEFT_OUT = (
    "something beside the figure was left out of the reference (a smaller figure, lettering, a loose object): what belongs to "
    "the character has to touch it, or be said in the sentence"
)
REMEDY = "Give a picture of one character from head to feet"


class ReferenceRecord(Record):
    """A picture of a character, and what it shows."""

    image: Ref
    box: tuple[int, int, int, int] | None
    """x0, y0, x1, y1 of the figure and a margin, pixels; None where the background is not plain."""
    background: tuple[int, int, int] | None
    """RGB 0-255; None where it is not plain."""
    class_noun: str
    description: str
    """What the character looks like, as a prompt says it."""
    warnings: tuple[str, ...] = ()

    provenance = frozenset({"warnings"})


def look_at(path: Path, onlooker: Onlooker, store: Store) -> ReferenceRecord:
    """Store a picture of a character with what it shows.

    Raises:
        BadInput: it cannot be read, or it shows nobody, several, or a face alone; says what would work.
    """
    picture = read_picture(path, LABEL, SMALLEST_SIDE)
    image, warnings = _reduced(picture.image, LARGEST_SIDE), list(picture.warnings)
    box, colour, doubts = _before_plain(picture, image.size, path)
    try:
        sight = onlooker.look(image.crop(box) if box else image)
    except BadInput as error:
        raise BadInput(f"{LABEL} {path}: {error}") from error
    if sight.figures == 0:
        raise BadInput(f"{LABEL} {path}: no figure was found in it. {REMEDY}, well apart from what is behind it")
    if sight.figures > 1:
        raise BadInput(_several(path, ""))
    if sight.framing == "face":
        raise BadInput(
            f"{LABEL} {path}: it shows a face alone, so body and clothes would be made up. {REMEDY} (to the waist at least), "
            "or leave --reference out and describe the character in a sentence"
        )
    if sight.framing == "upper body":
        warnings.append("the reference does not show the whole character: what it leaves out was made up")
    warnings += [doubt for doubt in doubts if doubt != CUT_OFF or sight.framing == "full body"]
    return ReferenceRecord(
        image=store.put(png(image), "reference.png"),
        box=box,
        background=colour,
        class_noun=sight.class_noun,
        description=sight.description,
        warnings=tuple(warnings),
    )


def reference_problems(path: Path) -> list[str]:
    """Why no sheet can be drawn from a picture, as far as that is seen without a model; empty when nothing is wrong."""
    try:
        _before_plain(read_picture(path, LABEL, SMALLEST_SIDE), (1, 1), path)
    except BadInput as error:
        return [str(error)]
    return []


def as_shown(reference: ReferenceRecord, store: Store) -> Image:
    """The picture as the edit model is to see it: the figure with a margin, where that is known; else the whole."""
    image = open_image(store.get(reference.image))
    return image.crop(reference.box) if reference.box else image


def as_taught(reference: ReferenceRecord, store: Store) -> Image:
    """The picture in a size that the embedded edit model was taught: a view of a sheet, or a square."""
    from charengine.embedded.shape import PICTURE_SIZE, VIEW_SIZE

    image, colour = as_shown(reference, store), reference.background
    white = colour is not None and min(colour) >= WHITE_ENOUGH
    size = VIEW_SIZE if white and image.height >= UPRIGHT * image.width else PICTURE_SIZE
    return padded(image, size, colour or _edge_colour(image))


def _reduced(image: Image, longest: int) -> Image:
    if max(image.size) <= longest:
        return image
    from PIL import Image as pil

    smaller = image.copy()
    smaller.thumbnail((longest, longest), pil.Resampling.LANCZOS)
    return smaller


def _before_plain(
    picture: Picture, size: tuple[int, int], path: Path
) -> tuple[Box | None, tuple[int, int, int] | None, list[str]]:
    """The figure's box in the picture at `size`, and the background's colour, where that is plain or transparent; and what is to be said.

    Raises:
        BadInput: it is, and no one figure stands before it.
    """
    small = _reduced(picture.image, LOOKED_AT)
    alpha = picture.alpha.resize(small.size) if picture.alpha and cuts_out(picture.alpha) else None
    backdrop = separate(np.asarray(small), THRESHOLD, None if alpha is None else np.asarray(alpha))
    if alpha is None and backdrop.plainness < PLAIN:
        return None, None, []
    figure = _only_figure(backdrop, path)
    x0, y0, x1, y1 = inner = _with_margin(figure)
    across, down = size[0] / small.width, size[1] / small.height
    box = (math.floor(x0 * across), math.floor(y0 * down), math.ceil(x1 * across), math.ceil(y1 * down))
    return box, backdrop.colour, _doubts(figure, inner, backdrop)


def _doubts(figure: Figure, inner: Box, backdrop: Backdrop) -> list[str]:
    """What the picture shows and the sheet will not; a figure that touches every edge was trimmed, not cut off."""
    x0, y0, x1, y1 = inner
    outside = backdrop.figure.copy()
    outside[y0:y1, x0:x1] = False
    found = [LEFT_OUT] if np.count_nonzero(outside) > STRAY_SHARE * outside.size else []
    return found + ([CUT_OFF] if 0 < len(edges_touched(figure, backdrop)) < EDGES else [])


def _only_figure(backdrop: Backdrop, path: Path) -> Figure:
    """The one figure.

    Raises:
        BadInput: there is none, or there are several.
    """
    there = standing_apart(backdrop)
    found = [figure for figure in there if figure.area >= SMALLEST_SHARE * backdrop.figure.size]
    if there and not found:
        share = max(figure.area for figure in there) / backdrop.figure.size
        raise BadInput(
            f"{LABEL} {path}: what stands out from its background fills {share:.1%} of it, and must fill {SMALLEST_SHARE:.0%}. "
            f"{REMEDY}, cut closer to it"
        )
    if not found:
        raise BadInput(f"{LABEL} {path}: no figure stands out from its background. {REMEDY}")
    if len(found) > 1:
        raise BadInput(_several(path, f"{len(found)} "))
    return found[0]


def _with_margin(figure: Figure) -> Box:
    """Its box with a margin, inside the picture."""
    height, width = figure.mask.shape
    x0, y0, x1, y1 = figure.box
    margin = round(MARGIN * figure.height)
    return max(0, x0 - margin), max(0, y0 - margin), min(width, x1 + margin), min(height, y1 + margin)


def _several(path: Path, count: str) -> str:
    return (
        f"{LABEL} {path}: it shows {count or 'several '}figures. {REMEDY}; or, if these are its front, side and back, give the "
        "picture with --sheet"
    )


def _edge_colour(image: Image) -> tuple[int, int, int]:
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edge, axis=0).round().astype(int)
    return int(red), int(green), int(blue)


def _work(given: Given, file: Path) -> ReferenceRecord:
    return look_at(file, given.models.onlooker, given.store)


LOOK = Stage(name="reference", version=3, makes=ReferenceRecord, work=_work, models=("onlooker",), gpu=True)
