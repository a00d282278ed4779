"""What is painted on the solids: cloth patterns, faces, tattoos, coat fronts. All per pixel, in own coordinates."""

from __future__ import annotations

import math

import torch

from charengine.embedded import solids as look

HUMAN, MACHINE, SKULL, ALIEN, CAT, FIERCE = range(6)  # face styles
_DOT_U, _DOT_V = 0.1, 0.085  # world size of one repeat

Plane = torch.Tensor
Colour = tuple[float, float, float] | torch.Tensor


class _Canvas:
    """Colours (n, 3, h, w) painted over where a mask says so."""

    def __init__(self, colour: torch.Tensor, glow: torch.Tensor) -> None:
        self.colour, self.glow = colour, glow

    def put(self, where: torch.Tensor, colour: Colour, glow: bool = False) -> None:
        if isinstance(colour, tuple):
            colour = torch.tensor(colour, device=self.colour.device)
        if colour.dim() < 4:
            colour = colour.reshape(-1, 3, 1, 1)
        self.colour = torch.where(where[:, None], colour, self.colour)
        if glow:
            self.glow = torch.where(where, 1.0, self.glow)


def paint_surface(
    base: torch.Tensor,
    own: list[torch.Tensor],
    pattern: Plane,
    paint: Plane,
    repeats: list[torch.Tensor],
    glow: Plane,
    face: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint every pixel of the surface.

    Args:
        base: plain colours (n, 3, h, w).
        own: own coordinates x, y, z of the hit, each (n, h, w).
        pattern, paint, glow: per pixel (n, h, w).
        repeats: pattern repeats around and along.
        face: per figure: style (n,), patch (n,) -1 right, 0 none, 1 left, eyes (n, 3), brow (n, 3), tattoo (n, 3),
            tattooed (n,).

    Returns:
        Colour (n, 3, h, w) and glow (n, h, w), 1 where light is emitted.
    """
    u, v = torch.atan2(own[0], own[2]) / math.pi, own[1]
    canvas = _Canvas(base, glow)
    canvas.put(_pattern_mask(u, v, pattern, repeats), _contrast(base))
    _paint_clothes(canvas, u, v, paint, base)
    _paint_face(canvas, u * math.pi, v, paint == look.FACE, face)
    tattoo = (paint == look.RINGS) & (face["tattooed"][:, None, None] > 0)
    ring = ((v * 1.5 + 0.15) % 1.0 - 0.27).abs()
    canvas.put(tattoo & (ring < 0.27), face["tattoo"], glow=True)
    canvas.put(tattoo & (ring < 0.08), _bright(face["tattoo"]), glow=True)
    return canvas.colour, canvas.glow


def _bright(colour: torch.Tensor) -> torch.Tensor:
    """The white-hot core of something that glows: tells a red tattoo from red skin."""
    return colour * 0.25 + 0.75


def _contrast(base: torch.Tensor) -> torch.Tensor:
    """A second colour that stands out: nearly white on dark cloth, dark on light cloth."""
    bright = (base * base.new_tensor([0.3, 0.59, 0.11])[:, None, None]).sum(1, keepdim=True)
    return torch.where(bright < 0.58, base * 0.2 + 0.76, base * 0.42)


def _pattern_mask(u: Plane, v: Plane, pattern: Plane, repeats: list[torch.Tensor]) -> torch.Tensor:
    around, along = (u + 1) / 2 * repeats[0], v * repeats[1]
    striped = along % 1.0 < 0.45
    row = torch.floor(along)
    du, dv = ((around + 0.5 * (row % 2)) % 1.0 - 0.5) * _DOT_U, (along % 1.0 - 0.5) * _DOT_V
    dotted = du * du + dv * dv < 0.027**2
    cells = torch.round(repeats[0] * 0.7) * 2
    checked = (torch.floor((u + 1) / 2 * cells) + torch.floor(along * 1.35)) % 2 == 0
    return ((pattern == 1) & striped) | ((pattern == 2) & dotted) | ((pattern == 3) & checked)


def _paint_clothes(canvas: _Canvas, u: Plane, v: Plane, paint: Plane, base: torch.Tensor) -> None:
    wide = u.abs()
    opening = paint == look.OPENING
    canvas.put(opening & (wide < 0.10 + 0.16 * (v - 0.1).clamp(min=0)) & (v > 0.1), base * 0.72)
    canvas.put(opening & (wide < 0.20 * (v - 0.25)), (0.93, 0.92, 0.88))
    canvas.put(opening & (wide < 0.018), (0.1, 0.1, 0.12))
    canvas.put(opening & ((u - 0.055).abs() < 0.022) & ((v * 2.2 + 0.1) % 1.0 < 0.3) & (v < 0.3), (0.95, 0.80, 0.30))
    split = paint == look.SPLIT
    canvas.put(split & (wide < 0.17), (0.1, 0.1, 0.12))
    canvas.put(split & (wide < 0.145), (0.95, 0.94, 0.90))
    plates = paint == look.PLATES
    canvas.put(plates & (wide < 0.30) & ((v - 0.75 + wide * 1.2).abs() < 0.12), (0.78, 0.81, 0.86))
    canvas.put(plates & (wide < 0.02), base * 0.45)
    canvas.put(plates & (wide * 6.0 + (v - 0.1).abs() * 1.4 < 0.50), (0.98, 0.80, 0.25))
    segments = paint == look.SEGMENTS
    canvas.put(segments & ((v * 1.5) % 1.0 < 0.36), (0.22, 0.22, 0.26))


def _paint_face(canvas: _Canvas, a: Plane, y: Plane, on_head: torch.Tensor, face: dict[str, torch.Tensor]) -> None:
    """`a` is the angle from straight ahead (radians, positive on the character's left), `y` the height in -1..1."""
    style = face["style"][:, None, None]

    def disc(centre: float, high: float, wide: float, tall: float) -> torch.Tensor:
        return ((a.abs() - centre) / wide) ** 2 + ((y - high) / tall) ** 2 < 1

    def where(kinds: tuple[int, ...], mask: torch.Tensor) -> torch.Tensor:
        chosen = sum((style == kind) for kind in kinds) > 0
        return on_head & chosen & mask

    fleshy, ink = (HUMAN, CAT, FIERCE), (0.08, 0.07, 0.09)
    canvas.put(where(fleshy, disc(0.46, -0.01, 0.30, 0.30) & (y > 0.02)), ink)
    canvas.put(where(fleshy, disc(0.46, -0.03, 0.26, 0.25)), (1.0, 1.0, 1.0))
    canvas.put(where((FIERCE,), disc(0.46, -0.03, 0.26, 0.25)), (1.0, 0.90, 0.35))
    canvas.put(where((HUMAN, FIERCE), disc(0.42, -0.05, 0.155, 0.20)), face["eyes"])
    canvas.put(where((HUMAN, FIERCE), disc(0.42, -0.05, 0.10, 0.14)), ink)
    canvas.put(where((CAT,), disc(0.45, -0.03, 0.24, 0.25)), (0.55, 0.88, 0.25))
    canvas.put(where((CAT,), disc(0.44, -0.03, 0.07, 0.22)), ink)
    canvas.put(where(fleshy, disc(0.49, 0.05, 0.05, 0.06)), (1.0, 1.0, 1.0))
    brow_height = 0.40 + 0.10 * (a.abs() - 0.4)
    angry = 0.33 + 0.35 * (a.abs() - 0.4)
    canvas.put(where((HUMAN,), ((y - brow_height).abs() < 0.05) & (a.abs() > 0.24) & (a.abs() < 0.72)), face["brow"])
    canvas.put(where((FIERCE,), ((y - angry).abs() < 0.075) & (a.abs() > 0.16) & (a.abs() < 0.76)), face["brow"])
    smile = (y + 0.56 - 0.45 * a * a).abs() < 0.045
    canvas.put(where((HUMAN,), smile & (a.abs() < 0.36)), (0.55, 0.13, 0.13))
    canvas.put(where((FIERCE,), ((y + 0.56).abs() < 0.06) & (a.abs() < 0.5)), (0.25, 0.06, 0.06))
    muzzle = (y + 0.42 + 0.35 * (a.abs() - 0.18).abs()).abs() < 0.045
    canvas.put(where((CAT,), muzzle & (a.abs() < 0.42)), ink)
    canvas.put(where((CAT,), (y < -0.20) & (y > -0.36) & (a.abs() < 0.12 + 0.5 * (y + 0.28))), (0.95, 0.45, 0.50))
    whisker = ((y + 0.33 - 0.12 * (a.abs() - 0.5)).abs() < 0.022) | ((y + 0.47 + 0.10 * (a.abs() - 0.5)).abs() < 0.022)
    canvas.put(where((CAT,), whisker & (a.abs() > 0.5) & (a.abs() < 1.05)), ink)
    canvas.put(where((SKULL,), disc(0.44, 0.02, 0.31, 0.30)), ink)
    canvas.put(where((SKULL,), disc(0.42, 0.0, 0.09, 0.09)), (1.0, 0.75, 0.2), glow=True)
    canvas.put(where((SKULL,), (y < -0.20) & (y > -0.40) & (a.abs() < 0.13)), ink)
    teeth = (y < -0.52) & (y > -0.76) & (a.abs() < 0.62)
    canvas.put(where((SKULL,), teeth), (0.98, 0.97, 0.92))
    canvas.put(where((SKULL,), teeth & (((a * 6.0) % 1.0 < 0.26) | ((y + 0.64).abs() < 0.03))), ink)
    slant = (((a.abs() - 0.50) * 0.9 + (y + 0.02) * 0.45) / 0.42) ** 2 + (
        ((y + 0.02) * 0.9 - (a.abs() - 0.50) * 0.45) / 0.27
    ) ** 2
    canvas.put(where((ALIEN,), slant < 1), (0.05, 0.05, 0.09))
    canvas.put(where((ALIEN,), disc(0.58, 0.10, 0.09, 0.07)), (1.0, 1.0, 1.0))
    canvas.put(where((ALIEN,), ((y + 0.62).abs() < 0.04) & (a.abs() < 0.2)), ink)
    front = (y.abs() < 0.98) & (a.abs() < 1.4)
    canvas.put(where((MACHINE,), front & (a.abs() < 0.70) & (y > -0.18) & (y < 0.42)), (0.13, 0.14, 0.18))
    lamps = (a.abs() > 0.20) & (a.abs() < 0.55) & (y > -0.05) & (y < 0.30)
    canvas.put(where((MACHINE,), lamps), (1.0, 0.80, 0.15), glow=True)
    grille = (a.abs() < 0.42) & (y < -0.42) & (y > -0.74)
    canvas.put(where((MACHINE,), grille), (0.13, 0.14, 0.18))
    canvas.put(where((MACHINE,), grille & ((a * 5.0) % 1.0 < 0.4)), (0.75, 0.77, 0.80))
    _paint_patch(canvas, a, y, on_head, face["patch"][:, None, None])
    stripes = ((a.abs() - 0.79).abs() < 0.08) | ((a.abs() - 1.05).abs() < 0.08)
    cores = ((a.abs() - 0.79).abs() < 0.025) | ((a.abs() - 1.05).abs() < 0.025)
    marked = on_head & (face["tattooed"][:, None, None] > 0)
    canvas.put(marked & stripes & (y < -0.14) & (y > -0.62), face["tattoo"], glow=True)
    canvas.put(marked & cores & (y < -0.20) & (y > -0.56), _bright(face["tattoo"]), glow=True)


def _paint_patch(canvas: _Canvas, a: Plane, y: Plane, on_head: torch.Tensor, side: torch.Tensor) -> None:
    """A black patch over one eye with its strap slanting over the brow."""
    ink = (0.05, 0.05, 0.06)
    own_side = a * side
    patched = on_head & (side != 0)
    strap = (y - 0.25 - 0.30 * (own_side - 0.46)).abs() < 0.055
    canvas.put(patched & strap & (a.abs() < 1.7), ink)
    patch = ((own_side - 0.46) / 0.36) ** 2 + ((y + 0.02) / 0.36) ** 2 < 1
    canvas.put(patched & patch, ink)
