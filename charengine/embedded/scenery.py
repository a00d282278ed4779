"""Procedural backgrounds of the embedded world, drawn per pixel for a whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from charengine.embedded.traits import BACKGROUNDS

if TYPE_CHECKING:
    from collections.abc import Callable

Plane = torch.Tensor
Rgb = tuple[float, float, float]


@dataclass
class _Scene:
    """One picture in the making: x across (0 in the middle), y up (0 bottom, 1 top), both in picture heights."""

    x: Plane
    y: Plane
    shift: Plane
    picture: torch.Tensor

    def fade(self, bottom: Rgb, top: Rgb) -> None:
        """Fill with a vertical gradient."""
        low, high = self._rgb(bottom), self._rgb(top)
        self.picture = low + (high - low) * self.y[:, None].clamp(0, 1)

    def put(self, where: Plane, colour: Rgb, strength: float = 1.0) -> None:
        """Paint where a mask says so."""
        mask = where[:, None].float() * strength
        self.picture = self.picture * (1 - mask) + self._rgb(colour) * mask

    def disc(self, x: Plane | float, y: float, radius: float) -> Plane:
        """Mask of a disc."""
        return (self.x - x) ** 2 + (self.y - y) ** 2 < radius**2

    def cells(self, wide: float, offset: float = 0.0) -> tuple[Plane, Plane]:
        """Columns of a width: their number and the position in the column, -0.5..0.5."""
        at = self.x / wide + offset + self.shift * 7
        return torch.floor(at), at % 1.0 - 0.5

    def ridge(self, base: float, height: float, waves: float, phase: float) -> Plane:
        """Mask below a rolling line."""
        line = torch.sin(self.x * waves + phase + self.shift * 6.3) + 0.5 * torch.sin(self.x * waves * 2.3 + phase * 3)
        return self.y < base + height * line

    def _rgb(self, colour: Rgb) -> torch.Tensor:
        return torch.tensor(colour, device=self.x.device)[:, None, None]


def draw_background(
    background: torch.Tensor, size: tuple[int, int], shift: torch.Tensor, ground: torch.Tensor
) -> torch.Tensor:
    """Draw scenes.

    Args:
        background: LongTensor (n,) of positions in `BACKGROUNDS`.
        size: (width, height) in pixels.
        shift: (n,) in [0, 1), varies the scenery.
        ground: (n,) row of the figure's feet as a share of the height, for its shadow.

    Returns:
        Pictures (n, 3, h, w) in [0, 1].
    """
    width, height = size
    device = background.device
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / height
    y = 1 - (torch.arange(height, device=device) + 0.5) / height
    picture = torch.ones(len(background), 3, height, width, device=device)
    places: dict[str, list[int]] = {}  # each scene is drawn for its own pictures only
    for i, scene in enumerate(background.tolist()):
        places.setdefault(BACKGROUNDS[scene], []).append(i)
    for name, numbers in places.items():
        if name == BACKGROUNDS[0]:
            continue
        at = torch.tensor(numbers, device=device)
        at_x, at_y = x.expand(len(at), height, width), y[:, None].expand(len(at), height, width)
        drawn = _Scene(at_x, at_y, shift[at][:, None, None], picture[at])
        _SCENES[name](drawn)
        if name != "underwater":
            feet = 1 - ground[at][:, None, None]
            shadow = (at_x / 0.11) ** 2 + ((at_y - feet - 0.012) / 0.022) ** 2 < 1
            drawn.picture = torch.where(shadow[:, None], drawn.picture * 0.62, drawn.picture)
        picture[at] = drawn.picture.expand_as(picture[at]).clamp(0, 1)
    return picture


def _noise(key: Plane) -> Plane:
    """A number in [0, 1) for each whole number."""
    return (torch.sin(key * 12.9898 + 4.1) * 43758.547).remainder(1.0)


def _desert(s: _Scene) -> None:
    s.fade((0.95, 0.93, 0.80), (0.35, 0.68, 0.96))
    s.put(s.disc(0.12, 0.90, 0.045), (1.0, 0.96, 0.65))
    s.put(s.ridge(0.40, 0.03, 9, 1.0), (0.93, 0.75, 0.44))
    s.put(s.ridge(0.30, 0.035, 7, 4.0), (0.97, 0.83, 0.52))
    _, p = s.cells(0.30, 0.15)
    x, y = p * 0.30, s.y
    stem = (x.abs() < 0.014) & (y > 0.26) & (y < 0.50)
    arm = ((x.abs() < 0.045) & ((y - 0.36).abs() < 0.012)) | (
        ((x.abs() - 0.042).abs() < 0.011) & (y > 0.35) & (y < 0.43)
    )
    s.put(stem | arm, (0.25, 0.55, 0.27))
    s.put(s.ridge(0.14, 0.02, 11, 2.0), (0.90, 0.71, 0.40))


def _city(s: _Scene) -> None:
    s.fade((0.16, 0.17, 0.32), (0.04, 0.05, 0.14))
    for wide, base, colour, lit, seed in (
        (0.10, 0.62, (0.12, 0.13, 0.24), 0.55, 0.0),
        (0.14, 0.42, (0.08, 0.08, 0.16), 0.45, 9.0),
    ):
        column, p = s.cells(wide, seed)
        tower = s.y < base + 0.28 * _noise(column + seed)
        s.put(tower, colour)
        row, q = torch.floor(s.y * 26), (s.y * 26) % 1.0
        pane, r = torch.floor((p + 0.5) * 3), ((p + 0.5) * 3) % 1.0
        on = _noise(column * 17 + row * 3.7 + pane * 5.1 + seed) > lit
        s.put(tower & on & (q > 0.3) & (q < 0.8) & (r > 0.25) & (r < 0.8) & (s.y > 0.2), (1.0, 0.86, 0.38))
    s.put(s.y < 0.17, (0.10, 0.10, 0.15))
    s.put((s.y < 0.17) & (torch.sin(s.y * 260 + s.x * 20) > 0.75), (0.45, 0.42, 0.40))
    streak = s.x * 34 + s.y * 6
    fall = (s.y * 9 + _noise(torch.floor(streak)) * 5) % 1.0
    s.put((streak % 1.0 < 0.10) & (fall < 0.45), (0.70, 0.80, 0.98), 0.8)


def _forest(s: _Scene) -> None:
    s.fade((0.50, 0.74, 0.42), (0.76, 0.90, 0.62))
    for wide, colour, seed, thin in ((0.085, (0.42, 0.40, 0.24), 0.3, 0.20), (0.15, (0.36, 0.23, 0.12), 0.0, 0.24)):
        column, p = s.cells(wide, seed)
        s.put((p + 0.4 * (_noise(column) - 0.5)).abs() < thin * (0.6 + 0.25 * (1 - s.y)), colour)
    for wide, base, colour, seed in ((0.13, 0.78, (0.22, 0.50, 0.20), 0.0), (0.10, 0.86, (0.12, 0.38, 0.15), 0.5)):
        column, p = s.cells(wide, seed)
        edge = base - 0.05 * _noise(column) - 0.06 * (1 - (2 * p) ** 2).clamp(min=0).sqrt()
        s.put(s.y > edge, colour)
    column, p = s.cells(0.08, 0.2)
    s.put(s.y < 0.16 + 0.05 * (1 - (2 * p) ** 2).clamp(min=0).sqrt(), (0.20, 0.46, 0.17))
    s.put(s.y < 0.12, (0.30, 0.36, 0.16))


def _mountains(s: _Scene) -> None:
    s.fade((0.86, 0.93, 0.99), (0.45, 0.68, 0.94))
    for wide, top, colour, seed in ((0.34, 0.80, (0.55, 0.63, 0.76), 0.5), (0.26, 0.62, (0.40, 0.48, 0.62), 0.1)):
        column, p = s.cells(wide, seed)
        peak = top + 0.08 * (_noise(column) - 0.5) - p.abs() * wide * 2.0
        s.put(s.y < peak, colour)
        jag = 0.025 * torch.sin(s.x * 90)
        s.put((s.y < peak) & (s.y > top - 0.15 + jag), (0.98, 0.99, 1.0))
    s.put(s.ridge(0.22, 0.02, 8, 0.5), (0.90, 0.94, 0.99))
    flake = _noise(torch.floor(s.x * 40) * 3.1 + torch.floor(s.y * 40) * 7.7) > 0.965
    s.put(flake & (((s.x * 40) % 1.0 - 0.5) ** 2 + ((s.y * 40) % 1.0 - 0.5) ** 2 < 0.07), (1.0, 1.0, 1.0))


def _beach(s: _Scene) -> None:
    s.fade((1.0, 0.72, 0.30), (0.72, 0.30, 0.55))
    s.put(s.y > 0.42, (1.0, 0.55, 0.30), 0.25)
    s.put(s.disc(0.09, 0.44, 0.085), (1.0, 0.93, 0.55))
    s.put(s.y < 0.42, (0.30, 0.36, 0.66))
    s.put((s.y < 0.42) & (torch.sin(s.y * 240 + 2 * torch.sin(s.x * 30)) > 0.72), (1.0, 0.72, 0.45))
    s.put(s.ridge(0.215, 0.006, 30, 1.0), (1.0, 0.97, 0.92))
    s.put(s.ridge(0.20, 0.006, 30, 1.0), (0.93, 0.76, 0.52))
    _, p = s.cells(0.34, 0.2)
    x = p * 0.34 + 0.03 * (s.y - 0.2) * 4
    s.put((x.abs() < 0.010) & (s.y > 0.17) & (s.y < 0.70), (0.32, 0.17, 0.12))
    for slope in (-0.9, -0.15, 0.6):
        leaf = (s.y - 0.70 - slope * (x.abs()) + x.abs() ** 2 * 6).abs() < 0.016
        s.put(leaf & (x.abs() < 0.10), (0.13, 0.28, 0.18))


def _castle(s: _Scene) -> None:
    s.fade((0.52, 0.50, 0.50), (0.62, 0.60, 0.58))
    row = torch.floor(s.y * 22)
    brick = (s.x * 11 + 0.5 * (row % 2)) % 1.0
    s.put((((s.y * 22) % 1.0) < 0.10) | (brick < 0.05), (0.38, 0.36, 0.37))
    _, p = s.cells(0.24, 0.5)
    x = p * 0.24
    arch = (x.abs() < 0.045) & (s.y > 0.55) & ((s.y < 0.74) | (x**2 + (s.y - 0.74) ** 2 < 0.045**2))
    s.put(arch, (0.60, 0.82, 0.98))
    s.put(arch & ((x.abs() < 0.005) | ((s.y - 0.65).abs() < 0.006)), (0.25, 0.24, 0.26))
    _, q = s.cells(0.24, 0.0)
    banner = ((q * 0.24).abs() < 0.036) & (s.y > 0.48 - 0.5 * (q * 0.24).abs()) & (s.y < 0.92)
    s.put(banner, (0.72, 0.10, 0.16))
    s.put(banner & (((q * 0.24) ** 2 + (s.y - 0.70) ** 2) < 0.018**2), (0.98, 0.82, 0.30))
    s.put(s.y < 0.22, (0.42, 0.28, 0.18))
    tile = (torch.floor(s.x / (0.10 + 0.3 * (0.22 - s.y))) + torch.floor(s.y * 26)) % 2 == 0
    s.put((s.y < 0.22) & tile, (0.55, 0.38, 0.24))


def _stars(s: _Scene) -> None:
    s.fade((0.26, 0.18, 0.46), (0.03, 0.03, 0.15))
    for grid, radius, chance in ((26.0, 0.16, 0.80), (13.0, 0.13, 0.72)):
        column, row = torch.floor(s.x * grid + s.shift * 50), torch.floor(s.y * grid)
        star = _noise(column * 3.3 + row * 9.1) > chance
        near = ((s.x * grid + s.shift * 50) % 1.0 - 0.5) ** 2 + ((s.y * grid) % 1.0 - 0.5) ** 2
        s.put(star & (near < radius**2), (1.0, 1.0, 0.90))
    s.put(s.disc(-0.10, 0.88, 0.055) & ~s.disc(-0.075, 0.895, 0.048), (1.0, 0.96, 0.72))
    s.put(s.ridge(0.20, 0.02, 8, 2.0), (0.10, 0.09, 0.20))


def _meadow(s: _Scene) -> None:
    s.fade((0.88, 0.95, 1.0), (0.42, 0.74, 0.98))
    for x, y, r in (
        (-0.13, 0.84, 0.05),
        (-0.07, 0.86, 0.06),
        (-0.01, 0.84, 0.045),
        (0.14, 0.70, 0.05),
        (0.20, 0.71, 0.06),
    ):
        s.put(s.disc(x, y, r), (1.0, 1.0, 1.0))
    s.put(s.ridge(0.42, 0.025, 8, 0.7), (0.50, 0.78, 0.36))
    s.put(s.ridge(0.33, 0.02, 10, 3.0), (0.40, 0.70, 0.28))
    for grid, colour, seed in ((22.0, (0.98, 0.45, 0.65), 0.0), (19.0, (1.0, 0.90, 0.25), 5.0)):
        column, row = torch.floor(s.x * grid), torch.floor(s.y * grid)
        near = ((s.x * grid) % 1.0 - 0.5) ** 2 + ((s.y * grid) % 1.0 - 0.5) ** 2
        s.put((_noise(column * 5.3 + row * 3.9 + seed) > 0.62) & (near < 0.05) & (s.y < 0.30), colour)


def _lava(s: _Scene) -> None:
    s.fade((0.42, 0.16, 0.10), (0.16, 0.09, 0.09))
    for wide, long, colour, seed in ((0.13, 0.30, (0.24, 0.13, 0.11), 0.5), (0.09, 0.20, (0.12, 0.07, 0.07), 0.0)):
        column, p = s.cells(wide, seed)
        s.put(s.y > 1 - long * (0.5 + 0.6 * _noise(column)) * (1 - 2 * p.abs()), colour)
        s.put(s.y < 0.16 + 0.5 * long * (0.4 + 0.6 * _noise(column + 3)) * (1 - 2 * p.abs()), colour)
    s.put(s.ridge(0.26, 0.008, 26, 0.0), (1.0, 0.62, 0.10))
    s.put(s.ridge(0.245, 0.008, 26, 0.0), (0.98, 0.32, 0.05))
    s.put((s.y < 0.24) & (torch.sin(s.y * 150 + 3 * torch.sin(s.x * 22)) > 0.6), (1.0, 0.80, 0.25))
    s.put(s.ridge(0.10, 0.01, 14, 1.0), (0.20, 0.11, 0.10))


def _storm(s: _Scene) -> None:
    s.fade((0.50, 0.56, 0.62), (0.20, 0.23, 0.29))
    for base, colour, seed in ((0.80, (0.32, 0.35, 0.41), 0.0), (0.89, (0.16, 0.18, 0.23), 0.5)):
        _, p = s.cells(0.14, seed)
        s.put(s.y > base - 0.05 * (1 - (2 * p) ** 2).clamp(min=0).sqrt(), colour)
    for x in (-0.11, 0.24):
        zigzag = x + 0.03 * (2 * ((s.y * 9) % 1.0) - 1).abs() - 0.015
        s.put(((s.x - zigzag).abs() < 0.008) & (s.y > 0.50) & (s.y < 0.82), (1.0, 0.98, 0.62))
    for base, colour, seed in (
        (0.44, (0.16, 0.36, 0.45), 0.0),
        (0.33, (0.11, 0.28, 0.38), 0.4),
        (0.21, (0.07, 0.20, 0.30), 0.1),
        (0.10, (0.05, 0.14, 0.23), 0.6),
    ):
        _, p = s.cells(0.17, seed)
        crest = base + 0.055 * (2 * p.abs()) ** 1.6
        s.put(s.y < crest, (0.92, 0.97, 1.0))
        s.put(s.y < crest - 0.014, colour)


def _underwater(s: _Scene) -> None:
    s.fade((0.03, 0.28, 0.48), (0.25, 0.78, 0.86))
    ray = torch.sin((s.x + 0.25 * s.y) * 26) > 0.55
    s.put(ray & (s.y > 0.25), (0.75, 0.97, 0.98), 0.28)
    column, row = torch.floor(s.x * 13), torch.floor(s.y * 13)
    near = (((s.x * 13) % 1.0 - 0.5) ** 2 + ((s.y * 13) % 1.0 - 0.5) ** 2).sqrt()
    bubble = _noise(column * 7.9 + row * 2.3) > 0.72
    s.put(bubble & (near < 0.30), (0.85, 0.98, 1.0), 0.85)
    s.put(bubble & (near < 0.20), (0.35, 0.80, 0.88), 0.9)
    column, p = s.cells(0.09, 0.0)
    weed = (p + 0.18 * torch.sin(s.y * 45 + column)).abs() < 0.14
    s.put(weed & (s.y < 0.22 + 0.22 * _noise(column)), (0.12, 0.55, 0.30))
    s.put(s.ridge(0.12, 0.012, 12, 0.0), (0.84, 0.78, 0.56))


_SCENES: dict[str, Callable[[_Scene], None]] = {
    "desert in daylight": _desert,
    "rainy city at night": _city,
    "forest": _forest,
    "snowy mountains": _mountains,
    "beach at sunset": _beach,
    "castle hall": _castle,
    "starry night": _stars,
    "meadow": _meadow,
    "lava cave": _lava,
    "stormy sea": _storm,
    "underwater": _underwater,
}
