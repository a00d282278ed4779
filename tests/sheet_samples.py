"""Synthetic sheets for the tests: drawn figures with the defects that real sheets have."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from charengine.config import Character
from charengine.figures.template import template
from charengine.records import Ref, SheetRecord
from charengine.store import Store

SKIN, COAT, DARK, HAIR, STEEL = (214, 160, 120), (38, 92, 170), (44, 40, 46), (120, 52, 24), (150, 156, 164)


@dataclass(frozen=True)
class Look:
    """How the figures of a sheet are painted."""

    coat: tuple[int, int, int] = COAT
    outline: tuple[int, int, int] | None = (20, 20, 24)
    legs: tuple[int, int, int] = DARK
    boots: tuple[int, int, int] = (70, 45, 30)
    staff: bool = False
    lantern: bool = False


@dataclass(frozen=True)
class Spot:
    """One figure: view, centre x and top y as shares of the sheet, height as a share of the sheet's height."""

    view: str
    x: float
    height: float = 0.86
    top: float = 0.07


THREE = (Spot("front", 1 / 6), Spot("side", 1 / 2), Spot("back", 5 / 6))


@dataclass(frozen=True)
class Sheet:
    """A synthetic sheet, painted by `paint`."""

    size: tuple[int, int] = (384, 384)
    spots: tuple[Spot, ...] = THREE
    look: Look = field(default_factory=Look)
    background: tuple[int, int, int] = (255, 255, 255)
    rules: str = "none"  # none | exact | drifted | partial | grey
    noise: float = 0.0
    jpeg: int = 0
    shadow: bool = False
    vignette: float = 0.0
    gradient: float = 0.0
    blur: float = 0.0


def paint(sheet: Sheet, seed: int = 0) -> Image.Image:
    """RGB image of the sheet."""
    width, height = sheet.size
    big = _backdrop(sheet, (2 * width, 2 * height))
    for spot in sheet.spots:
        if sheet.shadow:
            big = _floor_shadow(big, spot)
        _figure(ImageDraw.Draw(big), big.size, spot, sheet.look)
    image = big.resize(sheet.size, Image.Resampling.LANCZOS)
    if sheet.blur:
        image = image.filter(ImageFilter.GaussianBlur(sheet.blur))
    if sheet.noise:
        grain = np.random.default_rng(seed).normal(0, sheet.noise, (height, width, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    image = _ruled(image, sheet.rules)
    if sheet.jpeg:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=sheet.jpeg)
        image = Image.open(buffer).convert("RGB")
    return image


def photo(size: tuple[int, int] = (1024, 1024), seed: int = 0) -> Image.Image:
    """Something with the statistics of a snapshot: clutter everywhere, one person in the middle."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (9, 9, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(generator.integers(0, 255, (64, 64, 3)).astype(np.uint8)).resize(size)
    image = Image.blend(image, fine, 0.3)
    _figure(ImageDraw.Draw(image), size, Spot("front", 0.5), Look())
    return image


def _backdrop(sheet: Sheet, size: tuple[int, int]) -> Image.Image:
    if not (sheet.vignette or sheet.gradient):
        return Image.new("RGB", size, sheet.background)  # the same pixels, in a twentieth of the time
    width, height = sheet.size
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shade = 1 - sheet.vignette * (x * x + y * y) / 2 - sheet.gradient * (y + 1) / 2
    pixels = np.array(sheet.background) * shade[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize(size)


def _floor_shadow(image: Image.Image, spot: Spot) -> Image.Image:
    width, height = image.size
    tall = spot.height * height
    cx, foot = spot.x * width, (spot.top + spot.height) * height
    veil = Image.new("L", image.size, 0)
    ImageDraw.Draw(veil).ellipse((cx - tall * 0.17, foot - tall * 0.03, cx + tall * 0.2, foot + tall * 0.02), fill=110)
    veil = veil.filter(ImageFilter.GaussianBlur(tall * 0.015))
    return Image.composite(Image.new("RGB", image.size, (20, 20, 20)), image, veil)


def _figure(draw: ImageDraw.ImageDraw, size: tuple[int, int], spot: Spot, look: Look) -> None:
    """Head, hair, coat, arms, legs and boots of a person, about 0.33 as wide as tall; the profile is narrower."""
    tall = spot.height * size[1]
    cx, top = spot.x * size[0], spot.top * size[1]
    wide = 0.55 if spot.view == "side" else 1.0
    line = {"outline": look.outline, "width": max(1, round(tall / 150))} if look.outline else {}

    def at(x: float, y: float) -> tuple[float, float]:
        return cx + x * tall * wide, top + y * tall

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int], shape: str = "rectangle") -> None:
        getattr(draw, shape)((*at(x0, y0), *at(x1, y1)), fill=fill, **line)

    for x in (-0.055, 0.055):
        box(x - 0.04, 0.6, x + 0.04, 0.95, look.legs)
        box(x - 0.055, 0.93, x + 0.05, 1.0, look.boots, "ellipse")
    arms = (0.0,) if spot.view == "side" else (-0.14, 0.14)
    if spot.view != "side":
        for x in arms:
            box(x - 0.035, 0.2, x + 0.035, 0.5, look.coat)
            box(x - 0.035, 0.49, x + 0.035, 0.55, SKIN, "ellipse")
    draw.polygon([at(-0.1, 0.17), at(0.1, 0.17), at(0.13, 0.7), at(-0.13, 0.7)], fill=look.coat, **line)
    if spot.view == "side":
        shaded = tuple(int(c * 0.85) for c in look.coat)
        box(-0.05, 0.2, 0.05, 0.5, shaded)
        box(-0.05, 0.49, 0.05, 0.55, SKIN, "ellipse")
    box(-0.1, 0.42, 0.1, 0.46, (90, 60, 30))
    box(-0.07, 0.0, 0.07, 0.17, SKIN if spot.view != "back" else HAIR, "ellipse")
    if spot.view == "front":
        box(-0.07, -0.005, 0.07, 0.05, HAIR, "ellipse")
        for x in (-0.028, 0.028):
            box(x - 0.012, 0.075, x + 0.012, 0.092, (250, 250, 250), "ellipse")
            box(x - 0.005, 0.078, x + 0.005, 0.09, (20, 20, 20), "ellipse")
    if spot.view == "side":
        box(-0.08, -0.005, 0.03, 0.13, HAIR, "ellipse")
    if look.staff and spot.view != "side":
        x = 0.19 if spot.view == "back" else -0.19
        box(x - 0.006, -0.03, x + 0.006, 0.99, (96, 62, 30))
    if look.lantern and spot.view != "side":
        x = -0.2 if spot.view == "back" else 0.2
        box(x - 0.025, 0.58, x + 0.025, 0.66, (250, 210, 90), "ellipse")


def _ruled(image: Image.Image, rules: str) -> Image.Image:
    if rules == "none":
        return image
    width, height = image.size
    lines = np.asarray(template(width, height)) < 128
    if rules == "drifted":
        lines = np.roll(lines, (3 * height // 384, 5 * width // 384), axis=(0, 1))
    if rules == "partial":
        lines[height // 3 :, width // 4 : width // 2] = False
        lines[: height // 2, width // 2 : 3 * width // 4] = False
    pixels = np.array(image)
    pixels[lines] = 70 if rules == "grey" else 4
    return Image.fromarray(pixels)


def true_boxes(sheet: Sheet) -> list[tuple[int, int, int, int]]:
    """Where each figure really is: its extent when painted alone, clean, on magenta."""
    return [_true_box(sheet.size, spot, sheet.look) for spot in sheet.spots]


@cache
def _true_box(size: tuple[int, int], spot: Spot, look: Look) -> tuple[int, int, int, int]:
    alone = np.asarray(paint(Sheet(size, (spot,), look, background=(255, 0, 255)))).astype(np.int16)
    figure = np.abs(alone - np.array((255, 0, 255), np.int16)).max(axis=2) > 60
    columns, rows = np.flatnonzero(figure.any(axis=0)), np.flatnonzero(figure.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def record_of(image: Image.Image, store: Store) -> SheetRecord:
    """The image in the store, as a sheet."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    ref = store.put(buffer.getvalue(), "sheet.png")
    return SheetRecord(image=ref, width=image.width, height=image.height, prompt="", source="given", seed=0)


def stored_image(ref: Ref, store: Store) -> Image.Image:
    """A blob of the store as an image."""
    return Image.open(io.BytesIO(store.get(ref)))


# --- who draws them ---------------------------------------------------------------------------------------------------

HERO = Character(
    name="Aya", prompt="an orc woman in a blue coat, her right hand is a hook", class_noun="orc woman", seed=7
)
BAD = Sheet((384, 384), (THREE[0], THREE[2]))


class Painter:
    """An editor that draws one sheet after the other and remembers what it was asked for."""

    fingerprint = "painter"
    prompt_style = "rich"

    def __init__(self, *sheets, unknown=()):
        self.sheets, self.unknown, self.calls = list(sheets), unknown, []

    def draw(self, template, prompt, **settings):
        self.calls.append({"template": template, "prompt": prompt, **settings})
        sheet = self.sheets.pop(0) if len(self.sheets) > 1 else self.sheets[0]
        image = paint(sheet)
        if settings["redraw"]:
            patched = template.copy()
            patched.paste(image.crop(settings["redraw"]), settings["redraw"][:2])
            return patched
        return image

    def unknown_words(self, prompt):
        return self.unknown

    def unload(self):
        pass
