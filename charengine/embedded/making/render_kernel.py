"""The figures' pixels as two Triton kernels: `raster.draw_smooth` in two launches a batch instead of thousands.

The first finds the nearest solid along every ray and shades it: each program takes a block of one picture's rays and
passes over the solids whose reach misses the block. The second draws the ink outlines and averages the samples of each
pixel. What they compute is `raster` and `paint` (in `paint_kernel`), line by line, which remain the definition; tests
compare the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language import tensor

from charengine.embedded import raster
from charengine.embedded.making.paint_kernel import Colour, jit, paint_surface
from charengine.embedded.solids import SolidBatch

_NOWHERE = 1e30  # reach of a solid that is not there: no block touches it
_ROW, _FACE_ROW = 36, 12  # numbers a solid and a face have in their tables
_BLOCK_HEIGHT, _BLOCK_WIDTH = 16, 32

_FAR = tl.constexpr(raster._FAR)
_INK = tl.constexpr(raster._INK)
_LIGHT_X, _LIGHT_Y, _LIGHT_Z = (tl.constexpr(v) for v in raster._LIGHT)


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


@jit
def _trace_and_shade(
    table: tensor, faces: tensor, xs: tensor, ys: tensor, depth: tensor, group: tensor, colour: tensor, h: tensor,
    w: tensor, SOLIDS: tl.constexpr, ROW: tl.constexpr, FACE_ROW: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:  # fmt: skip
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


@jit
def _quadric_depth(s: tensor, px: tensor, py: tensor) -> tensor:
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


@jit
def _cap_depth(
    best: tensor, edge: tensor, qx: tensor, qy: tensor, qz: tensor, mx: tensor, my: tensor, mz: tensor, k2: tensor,
    k1: tensor, k0: tensor,
) -> tensor:  # fmt: skip
    z = (edge - qy) / my
    x, w = qx + z * mx, qz + z * mz
    return tl.where((x * x + w * w + (k2 * edge + k1) * edge + k0 < 0) & (z > best), z, best)


@jit
def _shade(s: tensor, face: tensor, px: tensor, py: tensor, depth: tensor) -> Colour:
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
    r, g, b, glow = paint_surface(s, face, ox, oy, oz)
    shining = glow > 0.5
    r = tl.where(shining, r, _unit(r * band))
    g = tl.where(shining, g, _unit(g * band))
    b = tl.where(shining, b, _unit(b * band))
    return r, g, b


@jit
def _unit(x: tensor) -> tensor:
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@jit
def _outline_and_average(
    depth: tensor, group: tensor, colour: tensor, image: tensor, alpha: tensor, h: tensor, w: tensor,
    SAMPLES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
) -> None:  # fmt: skip
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
