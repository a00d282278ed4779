"""The figures' pixels as two Triton kernels: `raster.draw_smooth` in two launches a batch instead of thousands.

The first finds the nearest solid along every ray and shades it: each program takes a block of one picture's rays and
passes over the solids whose reach misses the block. The second draws the ink outlines and averages the samples of each
pixel. What they compute is `raster` and `paint`, line by line, which remain the definition; tests compare the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from charengine.embedded import paint, raster
from charengine.embedded import solids as look
from charengine.embedded.solids import SolidBatch

_NOWHERE = 1e30  # reach of a solid that is not there: no block touches it
_ROW, _FACE_ROW = 36, 12  # numbers a solid and a face have in their tables
_BLOCK_HEIGHT, _BLOCK_WIDTH = 16, 32

_FAR = tl.constexpr(raster._FAR)
_INK = tl.constexpr(raster._INK)
_LIGHT_X, _LIGHT_Y, _LIGHT_Z = (tl.constexpr(v) for v in raster._LIGHT)
_FACE, _RINGS, _OPENING = tl.constexpr(look.FACE), tl.constexpr(look.RINGS), tl.constexpr(look.OPENING)
_PLATES, _SEGMENTS, _SPLIT = tl.constexpr(look.PLATES), tl.constexpr(look.SEGMENTS), tl.constexpr(look.SPLIT)
_HUMAN, _MACHINE, _SKULL = tl.constexpr(paint.HUMAN), tl.constexpr(paint.MACHINE), tl.constexpr(paint.SKULL)
_ALIEN, _CAT, _FIERCE = tl.constexpr(paint.ALIEN), tl.constexpr(paint.CAT), tl.constexpr(paint.FIERCE)
_DOT_U, _DOT_V = tl.constexpr(paint._DOT_U), tl.constexpr(paint._DOT_V)
_PI = tl.constexpr(3.14159265358979)


def draw_smooth(
    solids: SolidBatch, xs: torch.Tensor, ys: torch.Tensor, face: dict[str, torch.Tensor], samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`raster.draw_smooth` by kernel; same arguments and results."""
    n, h, w = xs.shape[0], ys.shape[1], xs.shape[1]
    table, faces = solid_table(solids), face_table(face)
    depth = torch.empty((n, h, w), device=xs.device)
    group = torch.empty((n, h, w), device=xs.device, dtype=torch.int16)
    colour = torch.empty((n, 3, h, w), device=xs.device)
    grid = (triton.cdiv(w, _BLOCK_WIDTH), triton.cdiv(h, _BLOCK_HEIGHT), n)
    _trace_and_shade[grid](
        table, faces, xs.contiguous(), ys.contiguous(), depth, group, colour, h, w,
        SOLIDS=table.shape[1], ROW=_ROW, FACE_ROW=_FACE_ROW, BLOCK_H=_BLOCK_HEIGHT, BLOCK_W=_BLOCK_WIDTH,
    )  # fmt: skip
    image = torch.empty((n, 3, h // samples, w // samples), device=xs.device)
    alpha = torch.empty((n, 1, h // samples, w // samples), device=xs.device)
    grid = (triton.cdiv(w // samples, _BLOCK_WIDTH), triton.cdiv(h // samples, _BLOCK_HEIGHT), n)
    _outline_and_average[grid](
        depth, group, colour, image, alpha, h, w,
        SAMPLES=samples, BLOCK_H=_BLOCK_HEIGHT, BLOCK_W=_BLOCK_WIDTH,
    )  # fmt: skip
    return image, alpha


def solid_table(solids: SolidBatch) -> torch.Tensor:
    """All that the kernel knows of each solid, as rows (n, P, 36) float32.

    0-8 world to own, 9-11 centre, 12-14 k2 k1 k0, 15-16 clip, 17-20 lowest and highest x, lowest and highest y,
    21-23 colour, 24 pattern, 25 paint, 26 group, 27-28 repeats, 29 glow, 30 checks around, 31-35 nothing.
    """
    n, count = solids.enabled.shape
    frame = solids.frame
    rows = [torch.linalg.cross(frame[..., (k + 1) % 3], frame[..., (k + 2) % 3]) for k in range(3)]
    inverse = torch.stack(rows, -2) / (rows[0] * frame[..., 0]).sum(-1)[..., None, None]
    low_x, high_x = solids.reach(0)
    low_y, high_y = solids.reach(1)
    on = solids.enabled
    reach = [
        low_x.where(on, _NOWHERE), high_x.where(on, -_NOWHERE), low_y.where(on, _NOWHERE), high_y.where(on, -_NOWHERE)
    ]  # fmt: skip
    numbers = [solids.pattern, solids.paint, solids.group]
    columns = [
        inverse.reshape(n, count, 9), solids.centre, solids.quadric, solids.clip, torch.stack(reach, -1),
        solids.colour, torch.stack(numbers, -1).float(), solids.repeats, solids.glow[..., None],
        torch.round(solids.repeats[..., :1] * 0.7) * 2, solids.centre.new_zeros(n, count, 5),
    ]  # fmt: skip
    return torch.cat(columns, -1).contiguous()


def face_table(face: dict[str, torch.Tensor]) -> torch.Tensor:
    """Rows (n, 12) float32: style, patch, eyes, brow, tattoo, tattooed."""
    columns = [
        face["style"][:, None].float(), face["patch"][:, None], face["eyes"], face["brow"], face["tattoo"],
        face["tattooed"][:, None],
    ]  # fmt: skip
    return torch.cat(columns, -1).contiguous()


@triton.jit
def _trace_and_shade(
    table, faces, xs, ys, depth, group, colour, h, w,
    SOLIDS: tl.constexpr, ROW: tl.constexpr, FACE_ROW: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    picture = tl.program_id(2)
    row = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    x = tl.load(xs + picture * w + tl.minimum(column, w - 1))
    y = tl.load(ys + picture * h + tl.minimum(row, h - 1))
    left, right, bottom, top = tl.min(x, 0), tl.max(x, 0), tl.min(y, 0), tl.max(y, 0)
    px, py = tl.broadcast_to(x[None, :], (BLOCK_H, BLOCK_W)), tl.broadcast_to(y[:, None], (BLOCK_H, BLOCK_W))
    best = tl.full((BLOCK_H, BLOCK_W), _FAR, tl.float32)
    owner = tl.full((BLOCK_H, BLOCK_W), -1, tl.int32)
    for i in range(SOLIDS):
        s = table + (picture * SOLIDS + i) * ROW
        across = (tl.load(s + 17) <= right) & (tl.load(s + 18) >= left)
        if across & (tl.load(s + 19) <= top) & (tl.load(s + 20) >= bottom):
            near = _quadric_depth(s, px, py)
            closer = near > best
            best = tl.where(closer, near, best)
            owner = tl.where(closer, i, owner)
    inside = (row < h)[:, None] & (column < w)[None, :]
    at = row[:, None] * w + column[None, :]
    plane = h * w
    start = picture.to(tl.int64) * plane
    tl.store(depth + start + at, best, mask=inside)
    if tl.max(tl.max(owner, 1), 0) >= 0:
        s = table + (picture * SOLIDS + tl.maximum(owner, 0)) * ROW
        r, g, b = _shade(s, faces + picture * FACE_ROW, px, py, best)
        tl.store(colour + 3 * start + at, r, mask=inside)
        tl.store(colour + 3 * start + plane + at, g, mask=inside)
        tl.store(colour + 3 * start + 2 * plane + at, b, mask=inside)
        tl.store(group + start + at, tl.where(owner < 0, -1, tl.load(s + 26)).to(tl.int16), mask=inside)
    else:
        tl.store(group + start + at, tl.full((BLOCK_H, BLOCK_W), -1, tl.int16), mask=inside)


@triton.jit
def _quadric_depth(s, px, py):
    """`raster._quadric_depth` of one solid along the rays of a block."""
    x, y, z = px - tl.load(s + 9), py - tl.load(s + 10), -tl.load(s + 11)
    mx, my, mz = tl.load(s + 2), tl.load(s + 5), tl.load(s + 8)
    qx = tl.load(s) * x + tl.load(s + 1) * y + mx * z
    qy = tl.load(s + 3) * x + tl.load(s + 4) * y + my * z
    qz = tl.load(s + 6) * x + tl.load(s + 7) * y + mz * z
    k2, k1, k0, low, high = tl.load(s + 12), tl.load(s + 13), tl.load(s + 14), tl.load(s + 15), tl.load(s + 16)
    a = mx * mx + mz * mz + k2 * my * my
    a = tl.where(tl.abs(a) < 1e-6, 1e-6, a)
    b = qx * mx + qz * mz + (k2 * qy + k1 / 2) * my
    c = qx * qx + qz * qz + (k2 * qy + k1) * qy + k0
    disc = b * b - a * c
    root = tl.sqrt(tl.maximum(disc, 0.0))
    z = (root - b) / a
    y = qy + z * my
    best = tl.where((disc > 0) & (y >= low) & (y <= high) & (z > _FAR), z, _FAR)
    z = (-root - b) / a
    y = qy + z * my
    best = tl.where((disc > 0) & (y >= low) & (y <= high) & (z > best), z, best)
    my = tl.where(tl.abs(my) < 1e-6, 1e-6, my)
    best = _cap_depth(best, low, qx, qy, qz, mx, my, mz, k2, k1, k0)
    return _cap_depth(best, high, qx, qy, qz, mx, my, mz, k2, k1, k0)


@triton.jit
def _cap_depth(best, edge, qx, qy, qz, mx, my, mz, k2, k1, k0):
    z = (edge - qy) / my
    x, w = qx + z * mx, qz + z * mz
    return tl.where((x * x + w * w + (k2 * edge + k1) * edge + k0 < 0) & (z > best), z, best)


@triton.jit
def _shade(s, face, px, py, depth):
    """`raster.shade`: `s` points to the row of each pixel's solid."""
    x, y, z = px - tl.load(s + 9), py - tl.load(s + 10), depth - tl.load(s + 11)
    m0, m1, m2, m3, m4 = tl.load(s), tl.load(s + 1), tl.load(s + 2), tl.load(s + 3), tl.load(s + 4)
    m5, m6, m7, m8 = tl.load(s + 5), tl.load(s + 6), tl.load(s + 7), tl.load(s + 8)
    ox, oy, oz = m0 * x + m1 * y + m2 * z, m3 * x + m4 * y + m5 * z, m6 * x + m7 * y + m8 * z
    k2, k1 = tl.load(s + 12), tl.load(s + 13)
    cap = ((tl.abs(oy - tl.load(s + 15)) < 2e-3) | (tl.abs(oy - tl.load(s + 16)) < 2e-3)) & (k2 <= 0)
    sign = tl.where(oy > 0, 1.0, tl.where(oy < 0, -1.0, 0.0))
    sx, sy, sz = tl.where(cap, 0.0, ox), tl.where(cap, sign, k2 * oy + k1 / 2), tl.where(cap, 0.0, oz)
    nx, ny, nz = m0 * sx + m3 * sy + m6 * sz, m1 * sx + m4 * sy + m7 * sz, m2 * sx + m5 * sy + m8 * sz
    length = tl.maximum(tl.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
    light = (nx * _LIGHT_X + ny * _LIGHT_Y + nz * _LIGHT_Z) / length
    band = 0.70 + 0.30 * _unit((light - 0.02) / 0.10) + 0.07 * _unit((light - 0.72) / 0.06)
    r, g, b, glow = _paint_surface(s, face, ox, oy, oz)
    shining = glow > 0.5
    r = tl.where(shining, r, _unit(r * band))
    g = tl.where(shining, g, _unit(g * band))
    b = tl.where(shining, b, _unit(b * band))
    return r, g, b


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _fraction(x):
    return x - tl.floor(x)


@triton.jit
def _odd(x):
    """x % 2 of a whole number."""
    return x - 2 * tl.floor(x * 0.5)


@triton.jit
def _atan2(y, x):
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


@triton.jit
def _put(where, r, g, b, red, green, blue):
    return tl.where(where, red, r), tl.where(where, green, g), tl.where(where, blue, b)


@triton.jit
def _paint_surface(s, face, ox, oy, oz):
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


@triton.jit
def _put_tattoo(where, core, face, r, g, b, glow):
    red, green, blue = tl.load(face + 8), tl.load(face + 9), tl.load(face + 10)
    r, g, b = _put(where, r, g, b, red, green, blue)
    r, g, b = _put(core, r, g, b, red * 0.25 + 0.75, green * 0.25 + 0.75, blue * 0.25 + 0.75)
    return r, g, b, tl.where(where | core, 1.0, glow)


@triton.jit
def _paint_pattern(s, u, v, r, g, b):
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
    return _put(mask, r, g, b, red, green, blue)


@triton.jit
def _paint_clothes(s, u, v, painted, r, g, b):
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
    return _put((painted == _SEGMENTS) & (_fraction(v * 1.5) < 0.36), r, g, b, 0.22, 0.22, 0.26)


@triton.jit
def _disc(wide, y, centre, high, width, height):
    """Inside one of two mirrored ellipses on the face; `wide` is the angle from straight ahead, without its sign."""
    across, up = (wide - centre) / width, (y - high) / height
    return across * across + up * up < 1


@triton.jit
def _paint_face(face, a, y, on, r, g, b, glow):
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


@triton.jit
def _paint_fleshy(face, style, a, wide, y, on, r, g, b):
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
    return _put(whisker, r, g, b, 0.08, 0.07, 0.09)


@triton.jit
def _outline_and_average(
    depth, group, colour, image, alpha, h, w,
    SAMPLES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """`raster.outline`, then the mean over the SAMPLES x SAMPLES rays of each pixel."""
    picture = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    height, width = h // SAMPLES, w // SAMPLES
    inside = (row < height)[:, None] & (column < width)[None, :]
    plane = h * w
    start = picture * plane
    red = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    green = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    blue = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    covered = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    for sample in range(SAMPLES * SAMPLES):
        y = tl.minimum(row * SAMPLES + sample // SAMPLES, h - 1)
        x = tl.minimum(column * SAMPLES + sample % SAMPLES, w - 1)
        at = y[:, None] * w + x[None, :]
        here = tl.load(depth + start + at)
        mine = tl.load(group + start + at).to(tl.int32)
        nearest, close, least, widest = here, here, mine, mine
        for dy in tl.static_range(-2, 3):
            for dx in tl.static_range(-2, 3):
                # Neighbours beyond the edge are left out: the nearest pixel inside the picture stands for them.
                near_y, near_x = tl.minimum(tl.maximum(y + dy, 0), h - 1), tl.minimum(tl.maximum(x + dx, 0), w - 1)
                beside = start + near_y[:, None] * w + near_x[None, :]
                there = tl.load(depth + beside)
                nearest = tl.maximum(nearest, there)
                if (dy >= -1) and (dy <= 1) and (dx >= -1) and (dx <= 1):
                    close = tl.maximum(close, there)
                    theirs = tl.load(group + beside).to(tl.int32)
                    least, widest = tl.minimum(least, theirs), tl.maximum(widest, theirs)
        ink = (nearest - here > 0.075) | ((widest != least) & (here < close))
        solid = mine >= 0
        scale, added = tl.where(ink, 0.22, 1.0), tl.where(ink, _INK * 0.4, 0.0)
        first = colour + 3 * start + at
        red += tl.load(first, mask=solid, other=0.0) * scale + added
        green += tl.load(first + plane, mask=solid, other=0.0) * scale + added
        blue += tl.load(first + 2 * plane, mask=solid, other=0.0) * scale + added
        covered += tl.where(solid | ink, 1.0, 0.0)
    share = 1.0 / (SAMPLES * SAMPLES)
    plane = height * width
    at = row[:, None] * width + column[None, :]
    tl.store(image + 3 * picture * plane + at, red * share, mask=inside)
    tl.store(image + 3 * picture * plane + plane + at, green * share, mask=inside)
    tl.store(image + 3 * picture * plane + 2 * plane + at, blue * share, mask=inside)
    tl.store(alpha + picture * plane + at, covered * share, mask=inside)
