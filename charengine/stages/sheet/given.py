"""A sheet that somebody already has."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from charengine.errors import BadInput
from charengine.pictures import cuts_out, png, read_picture
from charengine.records import SheetRecord
from charengine.stage import Given, Stage
from charengine.store import Store

SMALLEST_SIDE = 96
LARGEST_SIDE = 2048  # larger sheets are reduced: three views of one megapixel need no more
TRANSPARENT_BORDER = 0.7  # share of it, when three figures are cut out
NARROWEST, WIDEST = 0.5, 6.0  # width / height of a sheet


def take_sheet(path: Path, store: Store) -> SheetRecord:
    """Store a sheet that somebody already has, as upright 8-bit RGB (RGBA when its background is transparent).

    Raises:
        BadInput: the file is missing, unreadable, not an image of a known kind, or of an impossible size.
    """
    picture = read_picture(Path(path), "sheet")
    _check_shape(picture.image, path)
    image, warnings = picture.image, list(picture.warnings)
    if picture.alpha and cuts_out(picture.alpha, TRANSPARENT_BORDER):
        image = image.copy()
        image.putalpha(picture.alpha)
    if max(image.size) > LARGEST_SIDE:
        before = image.size
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        warnings.append(f"the sheet was reduced from {before[0]}×{before[1]} to {image.width}×{image.height}")
    return SheetRecord(
        image=store.put(png(image), "sheet.png"),
        width=image.width,
        height=image.height,
        prompt="",
        source="given",
        seed=0,
        warnings=tuple(warnings),
    )


def _check_shape(image: Image.Image, path: Path) -> None:
    if min(image.size) < SMALLEST_SIDE:
        raise BadInput(
            f"sheet {Path(path).name!r} is {image.width}×{image.height}; both sides must be at least {SMALLEST_SIDE} "
            "pixels (1024×1024 or more is best)"
        )
    if not NARROWEST <= image.width / image.height <= WIDEST:
        raise BadInput(
            f"sheet {Path(path).name!r} is {image.width}×{image.height}; three figures side by side need a picture "
            f"between half as wide as tall and {WIDEST:.0f} times as wide as tall"
        )


def _work(given: Given, file: Path) -> SheetRecord:
    return take_sheet(file, given.store)


GIVEN_SHEET = Stage(name="sheet", version=2, makes=SheetRecord, work=_work)
