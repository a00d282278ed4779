"""Pictures in and out: PNG and WebP bytes, and the one reader of pictures that somebody has.

`read_picture` is used for sheets, views, more views, regularisation pictures and references, `read_mask` for masks: upright
(EXIF), 8 bit, RGB with what is transparent on white, the first frame of an animation, never more than can be held in memory.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from charengine import files
from charengine.errors import BadInput
from charengine.undecoded import PNG_START, begins_well, check_end, check_palette, check_rows, slim, stretched

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

log = logging.getLogger(__name__)

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; the last column and row are not part of it
WEBP_QUALITY = 92

READABLE = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp")  # the third is what browsers on Windows call a JPEG
MOST_PIXELS = 100_000_000
MOST_BYTES = 200_000_000
ROUNDING = 2  # of 255: sRGB turned into sRGB
MADE_UP = 1e-3  # of a JPEG's pixels: the last few, of which some cameras leave out bits
GAMMAS, SRGB_GAMMAS = (0.1, 10.0), (0.43, 0.48)  # of PNGs: those that can be meant, those that mean sRGB's curve
PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # sRGB's white, red, green and blue, x and y
LONGEST_SIDE = 32_767  # beyond it a picture is a line
LEAST_WHITE = 128  # of 255: the brightest that a mask has to show; label maps of 0 and 1 show nothing


@dataclass(frozen=True)
class Picture:
    """A picture somebody has.

    Args:
        image: RGB, upright; what was transparent is white.
        alpha: L of the same size, 255 = opaque; None for a picture without transparency.
        warnings: what was left out of the file.
    """

    image: Image
    alpha: Image | None
    warnings: tuple[str, ...] = ()


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


def padded(
    image: Image, size: tuple[int, int], colour: tuple[int, int, int] | int | str, resample: Resampling | None = None
) -> Image:
    """The whole image in the middle of a picture of `size` and of its own mode, the rest in the colour."""
    from PIL import Image as pil

    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = pil.new(image.mode, size, colour)
    canvas.paste(image.resize(inner, resample), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas


# --- pictures that somebody has ---------------------------------------------------------------------------------------


def read_picture(path: Path, label: str, smallest: int = 1) -> Picture:
    """A PNG, JPEG or WebP file, checked before it is decoded.

    Args:
        path: the file.
        label: what it is to the user ("sheet", "picture"), before its path in messages.
        smallest: pixels that both sides must have.

    Raises:
        BadInput: it is missing, cannot be read, is no such picture, is damaged, too large or too small.
    """
    turned, animated = _decoded(path, label, smallest, decode=True)
    found = (f"{path.name} is animated: only its first frame is used",) if animated else ()
    upright = _upright(_in_srgb(_eight_bit(turned), turned))
    if upright.mode != "RGBA":
        return Picture(upright.convert("RGB"), None, found)
    alpha = upright.getchannel("A")
    return Picture(_on_white(upright), alpha if alpha.getextrema() != (255, 255) else None, found)


def read_mask(path: Path, size: tuple[int, int], label: str = "mask") -> Image:
    """A mask, L, 255 = figure: a grey picture, or the transparency of a cut-out one.

    Args:
        path: the file.
        size: width and height of the picture it belongs to.
        label: before its path in messages.

    Raises:
        BadInput: it cannot be read, has another size, or shows nothing; the mask is named.
    """
    picture = read_picture(path, label)
    mask = picture.alpha or picture.image.convert("L")
    if mask.size != size:
        raise BadInput(
            f"{label} {path} is {mask.width}×{mask.height}, its picture {size[0]}×{size[1]}; they must have one size"
        )
    brightest = int(mask.getextrema()[1])  # type: ignore[arg-type]
    if brightest < LEAST_WHITE:
        found = f"nearly black: its brightest value is {brightest} of 255" if brightest else "black all over"
        raise BadInput(f"{label} {path} is {found}: paint the figure white (255), or delete it to have it measured")
    return mask


def picture_problems(path: Path, label: str, decode: bool = True, smallest: int = 1) -> list[str]:
    """Why a file is not a picture that can be read; empty when it is one.

    Args:
        path: the file.
        label: before its path in messages.
        decode: False looks at its kind, its size and whether its end is there, for many files.
        smallest: pixels that both sides must have.
    """
    try:
        _decoded(path, label, smallest, decode)
    except BadInput as error:
        told = str(error)
        return [told if told.startswith(label) else f"{label} {told}"]
    return []


def cuts_out(alpha: Image, border: float = 0.5) -> bool:
    """Whether transparency cuts a figure out: this share of the border transparent, something inside opaque."""
    import numpy as np

    values = np.asarray(alpha)
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return float((edge < 16).mean()) > border and float((values > 239).mean()) > 0.02


def _decoded(path: Path, label: str, smallest: int, decode: bool) -> tuple[Image, bool]:
    """The first frame as it is in the file, and whether there are more."""
    from PIL import Image, UnidentifiedImageError

    name = f"{label} {path}"
    data = _bytes(path, name)
    try:
        image = _opened(slim(data))
        _check_size(image.size, name, smallest)
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        check_end(data, name)
        if decode:
            check_rows(data, name)
            image.load()
            _check_all_there(image, data, name)
            if image.mode == "P":
                check_palette(data, int(image.getextrema()[1]), name)  # type: ignore[arg-type]
            _scale_clear_colour(image, data)
        return image, animated
    except UnidentifiedImageError as error:
        if begins_well(data):
            raise BadInput(f"{name} is damaged: how it begins cannot be read; save or download it again") from error
        named = path.suffix.lower() in SUFFIXES
        remedy = ", whatever its name: choose a picture" if named else ": convert it to PNG"
        raise BadInput(f"{name} is not a readable PNG, JPEG or WebP{remedy}") from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"{name} has far too many pixels: reduce it first") from error
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, IndexError, OverflowError) as error:
        raise BadInput(
            f"{name} is not a PNG, JPEG or WebP picture that can be read ({_one_line(error)}): it is damaged; save or download it again"
        ) from error


def _opened(data: bytes) -> Image:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limit is the one that counts
        return Image.open(io.BytesIO(data), formats=READABLE)


def _check_all_there(image: Image, data: bytes, name: str) -> None:
    """Refuse a JPEG that shows something else when more stands behind its packed pixels: they end before the picture does."""
    from PIL import ImageChops

    if not data.startswith(b"\xff\xd8"):
        return
    changed = ImageChops.difference(image, _opened(stretched(data))).split()
    if max(sum(band.histogram()[ROUNDING + 1 :]) for band in changed) > MADE_UP * image.width * image.height:
        raise BadInput(
            f"{name} is damaged: some of its pixels are missing, and would be made up; save or download it again"
        )


def _bytes(path: Path, name: str) -> bytes:
    if not files.exists(path):
        raise BadInput(f"{name} is not a file: no such file; give a PNG, JPEG or WebP picture")
    if not files.is_file(path):
        raise BadInput(f"{name} is not a file: give a PNG, JPEG or WebP picture")
    if (size := files.size(path)) > MOST_BYTES:
        raise BadInput(f"{name} has {size / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} are read")
    if not size:
        raise BadInput(f"{name} is empty: save or download it again")
    return files.asked(path, path.read_bytes)


def _check_size(size: tuple[int, int], name: str, smallest: int) -> None:
    width, height = size
    if width * height > MOST_PIXELS or max(size) > LONGEST_SIDE:
        raise BadInput(
            f"{name} is {width}×{height}; at most {MOST_PIXELS / 1e6:.0f} megapixels and {LONGEST_SIDE:,} pixels a side "
            "are read: reduce it first"
        )
    if min(size) < smallest:
        raise BadInput(f"{name} is {width}×{height}; both sides must be at least {smallest} pixels")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


# --- colours ----------------------------------------------------------------------------------------------------------


def _eight_bit(image: Image) -> Image:
    """RGB, or RGBA when something may be transparent; what says how it is turned is kept."""
    import numpy as np
    from PIL import Image as pil

    if image.mode.startswith(("I", "F")):  # 16-bit grey, or 32
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        whole = 65535.0 if "16" in image.mode or values.max() > 255 else 255.0
        clear = image.info.get("transparency")
        grey = pil.fromarray((np.clip(values / whole, 0, 1) * 255).astype(np.uint8))
        grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
        if isinstance(clear, int):
            grey = grey.convert("LA")
            grey.putalpha(pil.fromarray(((values != clear) * 255).astype(np.uint8)))
        image = grey
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB")


def _scale_clear_colour(image: Image, data: bytes) -> None:
    """What a PNG says is transparent, as its pixels are decoded: grey of 2 or 4 bits spread to 8, colours of 16 bits cut to them."""
    clear = image.info.get("transparency")
    depth, colour = data[24:26] if data.startswith(PNG_START) else (8, 0)
    if isinstance(clear, int) and colour == 0 and depth in (2, 4):
        image.info["transparency"] = clear * 255 // (2**depth - 1)
    if isinstance(clear, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _in_srgb(image: Image, stored: Image) -> Image:
    """Colours as the file's ICC profile means them, else as a PNG's gamma does; as stored when that is sRGB's, damaged, or fits no RGB.

    Args:
        image: RGB or RGBA.
        stored: as it was decoded: CMYK is turned by its own profile.
    """
    from PIL import ImageChops, ImageCms

    if not (found := stored.info.get("icc_profile")):
        return image if "srgb" in stored.info else _by_gamma(image, stored)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(found))
        grey = profile.profile.xcolor_space == "GRAY" and image.mode == "RGB"
        turned = ImageCms.profileToProfile(
            stored if stored.mode == "CMYK" else image.convert("L") if grey else image,
            profile,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode=image.mode,
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("a picture's colour profile cannot be used (%s); its colours are taken as sRGB", _one_line(error))
        return image
    bands = ImageChops.difference(turned, image).getextrema() if turned else ()
    if turned is None or max(high for _, high in bands) <= ROUNDING:  # type: ignore[misc]
        return image
    turned.info = dict(image.info)
    return turned


def _by_gamma(image: Image, stored: Image) -> Image:
    """Pixels that are light to the power of a PNG's gAMA as sRGB has them; primaries of its own (cHRM) are said, not turned."""
    primaries = stored.info.get("chromaticity", PRIMARIES)
    if max(abs(one - own) for one, own in zip(primaries, PRIMARIES, strict=True)) > 0.01:
        log.warning("a PNG names primaries of its own (cHRM); they are taken as sRGB's: save it with an ICC profile")
    gamma = stored.info.get("gamma") or SRGB_GAMMAS[0]  # 0 says nothing
    if SRGB_GAMMAS[0] <= gamma <= SRGB_GAMMAS[1]:
        return image
    if not GAMMAS[0] <= gamma <= GAMMAS[1]:
        log.warning("a PNG's gamma of %g cannot be meant; its colours are taken as sRGB", gamma)
        return image
    light = [(value / 255) ** (1 / gamma) for value in range(256)]
    table = [
        round(255 * (12.92 * one if one <= 0.0031308 else 1.055 * one ** (1 / 2.4) - 0.055)) for one in light
    ]  # IEC 61966-2-1
    return image.point(table * 3 + [*range(256)] * (image.mode == "RGBA"))


def _upright(image: Image) -> Image:
    """Turned as its EXIF or XMP says; as it is stored when that cannot be read, as viewers do."""
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of a damaged note is said below
            return ImageOps.exif_transpose(image)
    except Exception as error:  # whatever a damaged note in the file raises, its pixels are whole
        log.warning(
            "what a picture says of how it is turned cannot be read (%s); it is taken as it is stored", _one_line(error)
        )
        return image


def _on_white(layered: Image) -> Image:
    from PIL import Image as pil

    flat = pil.new("RGBA", layered.size, "white")
    flat.alpha_composite(layered)
    return flat.convert("RGB")
