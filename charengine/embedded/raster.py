"""Draws solids by analytic ray intersection under an orthographic camera, with toon shading and ink outlines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from charengine.embedded.paint import paint_surface
from charengine.embedded.solids import SolidBatch

_FAR = -1e3
_LIGHT = (-0.42, 0.62, 0.66)
_INK = 0.12


@dataclass
class Surface:
    """What each pixel sees: depth (n, h, w; larger is nearer), solid (n, h, w; -1 none)."""

    depth: torch.Tensor
    solid: torch.Tensor


def draw(
    solids: SolidBatch, xs: torch.Tensor, ys: torch.Tensor, face: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shaded, outlined figures.

    Args:
        solids: the figures, already turned to the camera.
        xs: world x of the pixel columns (n, w).
        ys: world y of the pixel rows (n, h).
        face: look of each face, see `paint.paint_surface`.

    Returns:
        Colour (n, 3, h, w) and coverage (n, 1, h, w), both in [0, 1], colour not multiplied by coverage.
    """
    inverse = torch.linalg.inv_ex(solids.frame).inverse
    surface = trace(solids, inverse, xs, ys)
    colour = shade(solids, inverse, surface, xs, ys, face)
    return outline(solids, surface, colour)


def draw_smooth(
    solids: SolidBatch, xs: torch.Tensor, ys: torch.Tensor, face: dict[str, torch.Tensor], samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`draw` with `samples` x `samples` rays a pixel: colour times coverage (n, 3, h, w) and coverage (n, 1, h, w).

    A build on CUDA replaces this function by a kernel, see `build.render_kernel`.
    """
    colour, cover = draw(solids, xs, ys, face)
    return F.avg_pool2d(colour * cover, samples), F.avg_pool2d(cover, samples)


def trace(solids: SolidBatch, inverse: torch.Tensor, xs: torch.Tensor, ys: torch.Tensor) -> Surface:
    """The nearest solid along every pixel's ray."""
    shape = (xs.shape[0], ys.shape[1], xs.shape[1])
    best = xs.new_full(shape, _FAR)
    owner = torch.full(shape, -1, device=xs.device, dtype=torch.long)
    windows = _windows(solids, xs, ys)
    for i, (rows, columns) in enumerate(windows):
        if rows.start == rows.stop or columns.start == columns.stop:
            continue
        on, m, c = solids.enabled[:, i], inverse[:, i], solids.centre[:, i]
        x, y = xs[:, columns] - c[:, :1], ys[:, rows] - c[:, 1:2]
        start = [m[:, k, 0, None] * x - m[:, k, 2, None] * c[:, 2:] for k in range(3)]
        own = [(start[k][:, None, :] + (m[:, k, 1, None] * y)[:, :, None]) for k in range(3)]
        step = [m[:, k, 2, None, None] for k in range(3)]
        near = _quadric_depth(own, step, solids.quadric[:, i], solids.clip[:, i])
        near = torch.where(on[:, None, None], near, _FAR)
        closer = near > best[:, rows, columns]
        best[:, rows, columns] = torch.where(closer, near, best[:, rows, columns])
        owner[:, rows, columns] = torch.where(closer, i, owner[:, rows, columns])
    return Surface(best, owner)


def _windows(solids: SolidBatch, xs: torch.Tensor, ys: torch.Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns each solid covers in any picture of the batch; read back in one transfer."""
    spans = []
    for axis, pixels in ((1, ys), (0, xs)):
        low, high = (edge[:, :, None] for edge in solids.reach(axis))
        touched = ((pixels[:, None] >= low) & (pixels[:, None] <= high) & solids.enabled[:, :, None]).any(0)
        place = torch.arange(touched.shape[1], device=xs.device)
        start = place.where(touched, touched.shape[1]).amin(1)
        stop = (place + 1).where(touched, 0).amax(1)
        spans.append(torch.stack([torch.minimum(start, stop), stop], 1))
    return [(slice(*rows), slice(*columns)) for rows, columns in torch.stack(spans, 1).tolist()]


def _quadric_depth(
    own: list[torch.Tensor], step: list[torch.Tensor], quadric: torch.Tensor, clip: torch.Tensor
) -> torch.Tensor:
    """Largest z where the ray own + z·step meets the clamped quadric or one of its caps."""
    (qx, qy, qz), (mx, my, mz) = own, step
    k2, k1, k0 = (quadric[:, j, None, None] for j in range(3))
    low, high = clip[:, 0, None, None], clip[:, 1, None, None]
    a = mx * mx + mz * mz + k2 * my * my
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b = qx * mx + qz * mz + (k2 * qy + k1 / 2) * my
    c = qx * qx + qz * qz + (k2 * qy + k1) * qy + k0
    disc = b * b - a * c
    root = disc.clamp(min=0).sqrt()
    best = torch.full_like(qx, _FAR)
    for z in ((root - b) / a, (-root - b) / a):
        y = qy + z * my
        best = torch.where((disc > 0) & (y >= low) & (y <= high) & (z > best), z, best)
    my = torch.where(my.abs() < 1e-6, 1e-6, my)
    for edge in (low, high):
        z = (edge - qy) / my
        x, w = qx + z * mx, qz + z * mz
        inside = x * x + w * w + (k2 * edge + k1) * edge + k0 < 0
        best = torch.where(inside & (z > best), z, best)
    return best


def shade(
    solids: SolidBatch,
    inverse: torch.Tensor,
    surface: Surface,
    xs: torch.Tensor,
    ys: torch.Tensor,
    face: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Colour (n, 3, h, w) of every pixel's solid in three bands of light."""
    n, h, w = surface.solid.shape
    index = surface.solid.clamp(min=0).reshape(n, 1, -1)

    def of(values: torch.Tensor) -> list[torch.Tensor]:
        flat = values.reshape(n, values.shape[1], -1).float().transpose(1, 2)
        picked = flat.gather(2, index.expand(-1, flat.shape[1], -1))
        return [v.reshape(n, h, w) for v in picked.unbind(1)]

    c, m = of(solids.centre), of(inverse)
    at = (xs[:, None, :] - c[0], ys[:, :, None] - c[1], surface.depth - c[2])
    own = [m[3 * k] * at[0] + m[3 * k + 1] * at[1] + m[3 * k + 2] * at[2] for k in range(3)]
    (k2, k1, _), (low, high) = of(solids.quadric), of(solids.clip)
    slope = [own[0], k2 * own[1] + k1 / 2, own[2]]
    on_cap = (((own[1] - low).abs() < 2e-3) | ((own[1] - high).abs() < 2e-3)) & (k2 <= 0)
    cap = (torch.zeros_like(own[1]), own[1].sign(), torch.zeros_like(own[1]))
    slope = [torch.where(on_cap, flat, round_) for flat, round_ in zip(cap, slope, strict=True)]
    normal = torch.stack([m[a] * slope[0] + m[3 + a] * slope[1] + m[6 + a] * slope[2] for a in range(3)], 1)
    towards = normal.new_tensor(_LIGHT)[:, None, None]
    light = (F.normalize(normal, dim=1) * towards).sum(1)
    band = 0.70 + 0.30 * ((light - 0.02) / 0.10).clamp(0, 1) + 0.07 * ((light - 0.72) / 0.06).clamp(0, 1)
    base, glow = paint_surface(
        torch.stack(of(solids.colour), 1), own, of(solids.pattern)[0], of(solids.paint)[0],
        of(solids.repeats), of(solids.glow)[0], face,
    )  # fmt: skip
    lit = (base * band[:, None]).clamp(0, 1)
    return torch.where(glow[:, None] > 0.5, base, lit)


def outline(solids: SolidBatch, surface: Surface, colour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ink on the far side of every depth step and group border: the silhouette's outline lies outside the figure."""
    n, h, w = surface.solid.shape
    index = surface.solid.clamp(min=0)
    group = solids.group.gather(1, index.reshape(n, -1)).reshape(n, h, w)
    group = torch.where(surface.solid < 0, -1, group).float()
    depth = surface.depth
    nearest = F.max_pool2d(depth[:, None], 5, 1, 2)[:, 0]
    step = nearest - depth > 0.075
    widest, least = F.max_pool2d(group[:, None], 3, 1, 1)[:, 0], -F.max_pool2d(-group[:, None], 3, 1, 1)[:, 0]
    close = F.max_pool2d(depth[:, None], 3, 1, 1)[:, 0]
    border = (widest != least) & (depth < close)
    ink = step | border
    covered = (surface.solid >= 0) | ink
    figure = torch.where(surface.solid[:, None] >= 0, colour, torch.zeros_like(colour))
    drawn = torch.where(ink[:, None], figure * 0.22 + _INK * 0.4, figure)
    return drawn, covered[:, None].float()
