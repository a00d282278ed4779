"""Pictures in and out: PNG and WebP bytes, and why a file is no picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; the last column and row are not part of it
WEBP_QUALITY = 92


def png(image: Image) -> bytes:
    """The picture as PNG bytes, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def webp(image: Image) -> bytes:
    """A sweep picture as stored: WebP, a tenth of a PNG; scores are computed before this."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return buffer.getvalue()


def open_image(data: bytes, mode: str = "RGB") -> Image:
    """A stored picture in a mode."""
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert(mode)


def picture_problems(path: Path, label: str) -> list[str]:
    """Why a file is not a picture that can be read; empty when it is one."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        return [f"{label} {path}: no such file; give a PNG, JPEG or WebP picture"]
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return [f"{label} {path}: not a readable PNG, JPEG or WebP picture ({error})"]
    return []
