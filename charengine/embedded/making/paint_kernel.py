"""The paint of the figures as Triton functions: `paint`, line by line, for the kernels of `render_kernel`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import triton
import triton.language as tl
from triton.language import tensor

from charengine.embedded import paint
from charengine.embedded import solids as look

jit: Callable[[Callable[..., Any]], Any] = triton.jit
# what they give back; as text, for Triton looks up the names in annotations and knows no such types
Colour: TypeAlias = "tuple[tensor, tensor, tensor]"
Lit: TypeAlias = "tuple[tensor, tensor, tensor, tensor]"  # colour, and whether it glows

_FACE, _RINGS, _OPENING = tl.constexpr(look.FACE), tl.constexpr(look.RINGS), tl.constexpr(look.OPENING)
_PLATES, _SEGMENTS, _SPLIT = tl.constexpr(look.PLATES), tl.constexpr(look.SEGMENTS), tl.constexpr(look.SPLIT)
_HUMAN, _MACHINE, _SKULL = tl.constexpr(paint.HUMAN), tl.constexpr(paint.MACHINE), tl.constexpr(paint.SKULL)
_ALIEN, _CAT, _FIERCE = tl.constexpr(paint.ALIEN), tl.constexpr(paint.CAT), tl.constexpr(paint.FIERCE)
_DOT_U, _DOT_V = tl.constexpr(paint._DOT_U), tl.constexpr(paint._DOT_V)
_PI = tl.constexpr(3.14159265358979)


@jit
def _fraction(x: tensor) -> tensor:
    return x - tl.floor(x)


@jit
def _odd(x: tensor) -> tensor:
    """x % 2 of a whole number."""
    return x - 2 * tl.floor(x * 0.5)


@jit
def _atan2(y: tensor, x: tensor) -> tensor:
    """Within 3e-7 of atan2 (Cephes' single-precision polynomial); 0 at the origin."""
    across, along = tl.abs(y), tl.abs(x)
    ratio = tl.minimum(across, along) / tl.maximum(tl.maximum(across, along), 1e-30)
    large = ratio > 0.41421356
    t = tl.where(large, (ratio - 1) / (ratio + 1), ratio)
    q = t * t
    angle = (((8.05374449538e-2 * q - 1.38776856032e-1) * q + 1.99777106478e-1) * q - 3.33329491539e-1) * q * t + t
    angle = tl.where(large, angle + _PI / 4, angle)
    angle = tl.where(across > along, _PI / 2 - angle, angle)
    angle = tl.where(x < 0, _PI - angle, angle)
    return tl.where(y < 0, -angle, angle)


@jit
def _put(where: tensor, r: tensor, g: tensor, b: tensor, red: tensor, green: tensor, blue: tensor) -> Colour:
    return tl.where(where, red, r), tl.where(where, green, g), tl.where(where, blue, b)


@jit
def paint_surface(s: tensor, face: tensor, ox: tensor, oy: tensor, oz: tensor) -> Lit:
    """`paint.paint_surface`: colour and glow of each pixel."""
    a, v = _atan2(ox, oz), oy
    u = a / _PI
    r, g, b, glow = tl.load(s + 21), tl.load(s + 22), tl.load(s + 23), tl.load(s + 29)
    r, g, b = _paint_pattern(s, u, v, r, g, b)
    painted = tl.load(s + 25).to(tl.int32)
    if tl.max(tl.max(painted, 1), 0) > 0:
        r, g, b = _paint_clothes(s, u, v, painted, r, g, b)
        r, g, b, glow = _paint_face(face, a, v, painted == _FACE, r, g, b, glow)
        tattoo = tl.where(painted == _RINGS, tl.load(face + 11), 0.0) > 0
        ring = tl.abs(_fraction(v * 1.5 + 0.15) - 0.27)
        r, g, b, glow = _put_tattoo(tattoo & (ring < 0.27), tattoo & (ring < 0.08), face, r, g, b, glow)
    return r, g, b, glow


@jit
def _put_tattoo(where: tensor, core: tensor, face: tensor, r: tensor, g: tensor, b: tensor, glow: tensor) -> Lit:
    red, green, blue = tl.load(face + 8), tl.load(face + 9), tl.load(face + 10)
    r, g, b = _put(where, r, g, b, red, green, blue)
    r, g, b = _put(core, r, g, b, red * 0.25 + 0.75, green * 0.25 + 0.75, blue * 0.25 + 0.75)
    return r, g, b, tl.where(where | core, 1.0, glow)


@jit
def _paint_pattern(s: tensor, u: tensor, v: tensor, r: tensor, g: tensor, b: tensor) -> Colour:
    pattern = tl.load(s + 24).to(tl.int32)
    turn = (u + 1) / 2
    around, along = turn * tl.load(s + 27), v * tl.load(s + 28)
    step = _fraction(along)
    du = (_fraction(around + 0.5 * _odd(tl.floor(along))) - 0.5) * _DOT_U
    dv = (step - 0.5) * _DOT_V
    dotted = du * du + dv * dv < 0.027 * 0.027
    checked = _odd(tl.floor(turn * tl.load(s + 30)) + tl.floor(along * 1.35)) == 0
    mask = ((pattern == 1) & (step < 0.45)) | ((pattern == 2) & dotted) | ((pattern == 3) & checked)
    dark = 0.3 * r + 0.59 * g + 0.11 * b < 0.58
    red = tl.where(dark, r * 0.2 + 0.76, r * 0.42)
    green = tl.where(dark, g * 0.2 + 0.76, g * 0.42)
    blue = tl.where(dark, b * 0.2 + 0.76, b * 0.42)
    r, g, b = _put(mask, r, g, b, red, green, blue)
    return r, g, b


@jit
def _paint_clothes(s: tensor, u: tensor, v: tensor, painted: tensor, r: tensor, g: tensor, b: tensor) -> Colour:
    base_r, base_g, base_b = tl.load(s + 21), tl.load(s + 22), tl.load(s + 23)
    wide = tl.abs(u)
    on = painted == _OPENING
    lapel = on & (wide < 0.10 + 0.16 * tl.maximum(v - 0.1, 0.0)) & (v > 0.1)
    r, g, b = _put(lapel, r, g, b, base_r * 0.72, base_g * 0.72, base_b * 0.72)
    r, g, b = _put(on & (wide < 0.20 * (v - 0.25)), r, g, b, 0.93, 0.92, 0.88)
    r, g, b = _put(on & (wide < 0.018), r, g, b, 0.1, 0.1, 0.12)
    button = (tl.abs(u - 0.055) < 0.022) & (_fraction(v * 2.2 + 0.1) < 0.3) & (v < 0.3)
    r, g, b = _put(on & button, r, g, b, 0.95, 0.80, 0.30)
    on = painted == _SPLIT
    r, g, b = _put(on & (wide < 0.17), r, g, b, 0.1, 0.1, 0.12)
    r, g, b = _put(on & (wide < 0.145), r, g, b, 0.95, 0.94, 0.90)
    on = painted == _PLATES
    r, g, b = _put(on & (wide < 0.30) & (tl.abs(v - 0.75 + wide * 1.2) < 0.12), r, g, b, 0.78, 0.81, 0.86)
    r, g, b = _put(on & (wide < 0.02), r, g, b, base_r * 0.45, base_g * 0.45, base_b * 0.45)
    r, g, b = _put(on & (wide * 6.0 + tl.abs(v - 0.1) * 1.4 < 0.50), r, g, b, 0.98, 0.80, 0.25)
    r, g, b = _put((painted == _SEGMENTS) & (_fraction(v * 1.5) < 0.36), r, g, b, 0.22, 0.22, 0.26)
    return r, g, b


@jit
def _disc(wide: tensor, y: tensor, centre: tensor, high: tensor, width: tensor, height: tensor) -> tensor:
    """Inside one of two mirrored ellipses on the face; `wide` is the angle from straight ahead, without its sign."""
    across, up = (wide - centre) / width, (y - high) / height
    return across * across + up * up < 1


@jit
def _paint_face(face: tensor, a: tensor, y: tensor, on: tensor, r: tensor, g: tensor, b: tensor, glow: tensor) -> Lit:
    """`paint._paint_face`; every pixel of a picture has the same style, so only that style's lines run."""
    style = tl.load(face).to(tl.int32)
    wide = tl.abs(a)
    if tl.max(tl.max(on.to(tl.int32), 1), 0) > 0:
        if (style == _HUMAN) | (style == _CAT) | (style == _FIERCE):
            r, g, b = _paint_fleshy(face, style, a, wide, y, on, r, g, b)
        if style == _SKULL:
            r, g, b = _put(on & _disc(wide, y, 0.44, 0.02, 0.31, 0.30), r, g, b, 0.08, 0.07, 0.09)
            spark = on & _disc(wide, y, 0.42, 0.0, 0.09, 0.09)
            r, g, b = _put(spark, r, g, b, 1.0, 0.75, 0.2)
            glow = tl.where(spark, 1.0, glow)
            r, g, b = _put(on & (y < -0.20) & (y > -0.40) & (wide < 0.13), r, g, b, 0.08, 0.07, 0.09)
            teeth = on & (y < -0.52) & (y > -0.76) & (wide < 0.62)
            r, g, b = _put(teeth, r, g, b, 0.98, 0.97, 0.92)
            gap = (_fraction(a * 6.0) < 0.26) | (tl.abs(y + 0.64) < 0.03)
            r, g, b = _put(teeth & gap, r, g, b, 0.08, 0.07, 0.09)
        if style == _ALIEN:
            along = ((wide - 0.50) * 0.9 + (y + 0.02) * 0.45) / 0.42
            across = ((y + 0.02) * 0.9 - (wide - 0.50) * 0.45) / 0.27
            r, g, b = _put(on & (along * along + across * across < 1), r, g, b, 0.05, 0.05, 0.09)
            r, g, b = _put(on & _disc(wide, y, 0.58, 0.10, 0.09, 0.07), r, g, b, 1.0, 1.0, 1.0)
            r, g, b = _put(on & (tl.abs(y + 0.62) < 0.04) & (wide < 0.2), r, g, b, 0.08, 0.07, 0.09)
        if style == _MACHINE:
            visor = on & (tl.abs(y) < 0.98) & (wide < 0.70) & (y > -0.18) & (y < 0.42)
            r, g, b = _put(visor, r, g, b, 0.13, 0.14, 0.18)
            lamps = on & (wide > 0.20) & (wide < 0.55) & (y > -0.05) & (y < 0.30)
            r, g, b = _put(lamps, r, g, b, 1.0, 0.80, 0.15)
            glow = tl.where(lamps, 1.0, glow)
            grille = on & (wide < 0.42) & (y < -0.42) & (y > -0.74)
            r, g, b = _put(grille, r, g, b, 0.13, 0.14, 0.18)
            r, g, b = _put(grille & (_fraction(a * 5.0) < 0.4), r, g, b, 0.75, 0.77, 0.80)
        side = tl.load(face + 1)
        own_side = a * side
        patched = tl.where(on, side, 0.0) != 0
        strap = (tl.abs(y - 0.25 - 0.30 * (own_side - 0.46)) < 0.055) & (wide < 1.7)
        across, up = (own_side - 0.46) / 0.36, (y + 0.02) / 0.36
        r, g, b = _put(patched & (strap | (across * across + up * up < 1)), r, g, b, 0.05, 0.05, 0.06)
        marked = tl.where(on, tl.load(face + 11), 0.0) > 0
        near, far = tl.abs(wide - 0.79), tl.abs(wide - 1.05)
        stripes = marked & ((near < 0.08) | (far < 0.08)) & (y < -0.14) & (y > -0.62)
        cores = marked & ((near < 0.025) | (far < 0.025)) & (y < -0.20) & (y > -0.56)
        r, g, b, glow = _put_tattoo(stripes, cores, face, r, g, b, glow)
    return r, g, b, glow


@jit
def _paint_fleshy(
    face: tensor, style: tensor, a: tensor, wide: tensor, y: tensor, on: tensor, r: tensor, g: tensor, b: tensor,
) -> Colour:  # fmt: skip
    """Faces with eyes in sockets, brows and a mouth."""
    kind = tl.where(on, style, -1)
    human, cat, fierce = kind == _HUMAN, kind == _CAT, kind == _FIERCE
    plain = human | fierce
    r, g, b = _put(on & _disc(wide, y, 0.46, -0.01, 0.30, 0.30) & (y > 0.02), r, g, b, 0.08, 0.07, 0.09)
    white = _disc(wide, y, 0.46, -0.03, 0.26, 0.25)
    r, g, b = _put(on & white, r, g, b, 1.0, 1.0, 1.0)
    r, g, b = _put(fierce & white, r, g, b, 1.0, 0.90, 0.35)
    iris = plain & _disc(wide, y, 0.42, -0.05, 0.155, 0.20)
    r, g, b = _put(iris, r, g, b, tl.load(face + 2), tl.load(face + 3), tl.load(face + 4))
    r, g, b = _put(plain & _disc(wide, y, 0.42, -0.05, 0.10, 0.14), r, g, b, 0.08, 0.07, 0.09)
    r, g, b = _put(cat & _disc(wide, y, 0.45, -0.03, 0.24, 0.25), r, g, b, 0.55, 0.88, 0.25)
    r, g, b = _put(cat & _disc(wide, y, 0.44, -0.03, 0.07, 0.22), r, g, b, 0.08, 0.07, 0.09)
    r, g, b = _put(on & _disc(wide, y, 0.49, 0.05, 0.05, 0.06), r, g, b, 1.0, 1.0, 1.0)
    brow_height, angry = 0.40 + 0.10 * (wide - 0.4), 0.33 + 0.35 * (wide - 0.4)
    brow = human & (tl.abs(y - brow_height) < 0.05) & (wide > 0.24) & (wide < 0.72)
    brow = brow | (fierce & (tl.abs(y - angry) < 0.075) & (wide > 0.16) & (wide < 0.76))
    r, g, b = _put(brow, r, g, b, tl.load(face + 5), tl.load(face + 6), tl.load(face + 7))
    smile = human & (tl.abs(y + 0.56 - 0.45 * a * a) < 0.045) & (wide < 0.36)
    r, g, b = _put(smile, r, g, b, 0.55, 0.13, 0.13)
    r, g, b = _put(fierce & (tl.abs(y + 0.56) < 0.06) & (wide < 0.5), r, g, b, 0.25, 0.06, 0.06)
    muzzle = cat & (tl.abs(y + 0.42 + 0.35 * tl.abs(wide - 0.18)) < 0.045) & (wide < 0.42)
    r, g, b = _put(muzzle, r, g, b, 0.08, 0.07, 0.09)
    nose = cat & (y < -0.20) & (y > -0.36) & (wide < 0.12 + 0.5 * (y + 0.28))
    r, g, b = _put(nose, r, g, b, 0.95, 0.45, 0.50)
    upper, lower = tl.abs(y + 0.33 - 0.12 * (wide - 0.5)), tl.abs(y + 0.47 + 0.10 * (wide - 0.5))
    whisker = cat & ((upper < 0.022) | (lower < 0.022)) & (wide > 0.5) & (wide < 1.05)
    r, g, b = _put(whisker, r, g, b, 0.08, 0.07, 0.09)
    return r, g, b
