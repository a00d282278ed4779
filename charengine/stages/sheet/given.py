"""A sheet that somebody already has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from charengine.errors import BadInput
from charengine.pictures import png
from charengine.records import SheetRecord
from charengine.stage import Given, Stage
from charengine.store import Store

READABLE = ("PNG", "JPEG", "WEBP")
SMALLEST_SIDE = 96
LARGEST_SIDE = 2048  # larger sheets are reduced: three views of one megapixel need no more
MOST_PIXELS = 100_000_000
MOST_BYTES = 200_000_000
NARROWEST, WIDEST = 0.5, 6.0  # width / height of a sheet


# --- given ------------------------------------------------------------------------------------------------------------


def take_sheet(path: Path, store: Store) -> SheetRecord:
    """Store a sheet that somebody already has, as upright 8-bit RGB (RGBA when its background is transparent).

    Raises:
        BadInput: the file is missing, unreadable, not an image of a known kind, or of an impossible size.
    """
    warnings: list[str] = []
    image = _opened(Path(path), warnings)
    _check_shape(image, path)
    image = _eight_bit(image)
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


def _opened(path: Path, warnings: list[str]) -> Image.Image:
    """The first picture of the file, decoded whole and turned upright."""
    if not path.is_file():
        raise BadInput(f"sheet {str(path)!r} is not a file: give a PNG, JPEG or WebP image")
    if path.stat().st_size > MOST_BYTES:
        raise BadInput(
            f"sheet {path.name!r} has {path.stat().st_size / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} are read"
        )
    try:
        with Image.open(path, formats=READABLE) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadInput(
                    f"sheet {path.name!r} is {image.width}×{image.height}; at most {MOST_PIXELS / 1e6:.0f} megapixels are "
                    "read: reduce it first"
                )
            if getattr(image, "n_frames", 1) > 1:
                warnings.append(f"{path.name} is animated: only its first frame is used")
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise BadInput(f"sheet {path.name!r} is not a PNG, JPEG or WebP image: convert it to PNG") from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"sheet {path.name!r} has far too many pixels: reduce it first") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(
            f"sheet {path.name!r} cannot be read ({error}): it is damaged; save or download it again"
        ) from error


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


def _eight_bit(image: Image.Image) -> Image.Image:
    """RGB; RGBA with its colours on white when the picture has a transparent border."""
    if image.mode.startswith(("I", "F")):  # 16-bit grey
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values / max(255.0, 65535.0 if values.max() > 255 else 255.0) * 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        flat = Image.new("RGBA", layered.size, "white")
        flat.alpha_composite(layered)
        alpha = layered.getchannel("A")
        if _outlines_figures(alpha):
            flat.putalpha(alpha)
            return flat
        return flat.convert("RGB")
    return image.convert("RGB")


def _outlines_figures(alpha: Image.Image) -> bool:
    """Whether the alpha channel cuts figures out: most of the border transparent, something inside opaque."""
    values = np.asarray(alpha)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return float((border < 16).mean()) > 0.7 and float((values > 239).mean()) > 0.02


def _work(given: Given, file: Path) -> SheetRecord:
    return take_sheet(file, given.store)


GIVEN_SHEET = Stage(name="sheet", version=2, makes=SheetRecord, work=_work)
