"""Solids of one batch of figures: clamped quadrics in named slots, as padded tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

Look = dict[str, Any]
"""colour, pattern, paint, group, glow, when: see `SolidBatch`; colour alone is required."""
PLAIN, FACE, RINGS, OPENING, PLATES, BELTED, SEGMENTS, SPLIT = range(8)  # what is painted on a solid


@dataclass
class SolidBatch:
    """P solids of n figures; a solid is the set {x² + z² + k2·y² + k1·y + k0 <= 0, low <= y <= high} of its own frame,
    so ellipsoids, cones, discs and domes are one formula.

    Shapes: frame (n, P, 3, 3) own to world, centre (n, P, 3), quadric (n, P, 3) = k2, k1, k0; clip (n, P, 2);
    colour (n, P, 3); pattern, paint, group (n, P); repeats (n, P, 2); glow, enabled (n, P).
    """

    frame: torch.Tensor
    centre: torch.Tensor
    quadric: torch.Tensor
    clip: torch.Tensor
    colour: torch.Tensor
    pattern: torch.Tensor
    paint: torch.Tensor
    group: torch.Tensor
    repeats: torch.Tensor
    glow: torch.Tensor
    enabled: torch.Tensor

    def turned(self, yaw: torch.Tensor) -> SolidBatch:
        """The batch rotated about the vertical: yaw 0 faces the camera (+z), pi/2 faces the image's right."""
        c, s, zero, one = yaw.cos(), yaw.sin(), torch.zeros_like(yaw), torch.ones_like(yaw)
        turn = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], dim=-1).reshape(-1, 1, 3, 3)
        frame, centre = turn @ self.frame, (turn @ self.centre[..., None])[..., 0]
        return SolidBatch(**{**self.__dict__, "frame": frame, "centre": centre})

    def reach(self, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest world coordinate of each solid along an axis: two tensors (n, P)."""
        along = self.frame[:, :, axis]  # how far own x, y, z reach along the axis
        k2, k1, k0 = self.quadric.unbind(-1)
        ends = []
        for y in self.clip.unbind(-1):
            radius = (-(k2 * y * y + k1 * y + k0)).clamp(min=0).sqrt() * along[..., ::2].norm(dim=-1)
            ends += [along[..., 1] * y - radius, along[..., 1] * y + radius]
        whole = along.norm(dim=-1)
        low = torch.where(k2 > 0, -whole, torch.stack(ends).amin(0))
        high = torch.where(k2 > 0, whole, torch.stack(ends).amax(0))
        return low + self.centre[..., axis], high + self.centre[..., axis]

    def extent(self, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest world coordinate of each figure along an axis: two tensors (n,)."""
        low, high = self.reach(axis)
        return low.where(self.enabled, 1e3).amin(1), high.where(self.enabled, -1e3).amax(1)


class SolidBuilder:
    """Collects solids; figures that differ share a slot when at most one of its candidates is enabled for each."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.n, self.device = n, device
        self._slots: dict[str, dict[str, torch.Tensor]] = {}

    def number(self, value: torch.Tensor | float) -> torch.Tensor:
        """A float or a tensor (n,) as a tensor (n,)."""
        return torch.as_tensor(value, dtype=torch.float32, device=self.device).expand(self.n)

    def point(self, *xyz: torch.Tensor | float) -> torch.Tensor:
        """Three numbers as a tensor (n, 3)."""
        return torch.stack([self.number(v) for v in xyz], dim=-1)

    def ellipsoid(
        self,
        slot: str,
        centre: torch.Tensor,
        radii: torch.Tensor,
        axes: torch.Tensor | None = None,
        tilt: float = 0.0,
        low: float = -1.0,
        high: float = 1.0,
        **look: Any,
    ) -> None:
        """An ellipsoid with axes in the columns of `axes` (n, 3, 3), cut at own y = low and high.

        `tilt` (radians) leans own y back: a dome cut at own y = 0 then leaves the face free.
        """
        basis = torch.eye(3, device=self.device).expand(self.n, 3, 3) if axes is None else axes
        c, s = math.cos(tilt), math.sin(tilt)
        lean = torch.tensor([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]], device=self.device)
        self._put(slot, basis * radii[:, None, :] @ lean, centre, (1.0, 0.0, -1.0), (low, high), look)

    def cone(
        self,
        slot: str,
        start: torch.Tensor,
        end: torch.Tensor,
        start_radius: torch.Tensor | float,
        end_radius: torch.Tensor | float,
        flat: torch.Tensor | float = 1.0,
        ahead: torch.Tensor | None = None,
        **look: Any,
    ) -> None:
        """A capped cone; `flat` squeezes it along `ahead` (n, 3; default forward)."""
        forward = self.point(0, 0, 1) if ahead is None else ahead
        basis = basis_along(end - start, forward)
        half = (end - start).norm(dim=-1).clamp(min=1e-4) / 2
        r0, r1 = self.number(start_radius), self.number(end_radius)
        one = torch.ones_like(half)
        frame = basis * torch.stack([one, half, one * self.number(flat)], dim=-1)[:, None, :]
        a, b = (r0 + r1) / 2, (r1 - r0) / 2
        quadric = torch.stack([-b * b, -2 * a * b, -a * a], dim=-1)
        look = {"repeat_u": 6.28 * a / 0.1, "repeat_v": half / 0.085, **look}
        self._put(slot, frame, (start + end) / 2, quadric, (-1.0, 1.0), look)

    def build(self) -> SolidBatch:
        """All slots as one padded batch."""
        stacked = {
            k: torch.stack([s[k] for s in self._slots.values()], dim=1) for k in next(iter(self._slots.values()))
        }
        return SolidBatch(**stacked)

    def _put(
        self,
        slot: str,
        frame: torch.Tensor,
        centre: torch.Tensor,
        quadric: torch.Tensor | tuple[float, ...],
        clip: tuple[float, float],
        look: Look,
    ) -> None:
        n, device = self.n, self.device

        def whole(name: str, default: int) -> torch.Tensor:
            return torch.as_tensor(look.get(name, default), dtype=torch.long, device=device).expand(n)

        # Whole repeats around, so that a pattern meets itself at the back.
        around = self.number(look.get("repeat_u", 6.0)).round().clamp(min=2.0)
        repeats = torch.stack([around, self.number(look.get("repeat_v", 1.0))], -1)
        solid = {
            "frame": frame,
            "centre": centre,
            "quadric": torch.as_tensor(quadric, dtype=torch.float32, device=device).expand(n, 3),
            "clip": torch.tensor(clip, device=device).expand(n, 2),
            "colour": torch.as_tensor(look["colour"], dtype=torch.float32, device=device).expand(n, 3),
            "pattern": whole("pattern", 0),
            "paint": whole("paint", PLAIN),
            "group": whole("group", 0),
            "repeats": repeats,
            "glow": self.number(look.get("glow", 0.0)),
            "enabled": torch.as_tensor(look.get("when", True), device=device).expand(n),
        }
        if slot not in self._slots:
            self._slots[slot] = solid
            return
        before, when = self._slots[slot], solid["enabled"]
        merged = {k: torch.where(when.reshape(-1, *[1] * (v.dim() - 1)), v, before[k]) for k, v in solid.items()}
        self._slots[slot] = merged | {"enabled": before["enabled"] | when}


def basis_along(direction: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor:
    """Orthonormal axes (n, 3, 3), y along `direction`, z as near to `ahead` as possible."""
    y = torch.nn.functional.normalize(direction, dim=-1)
    # A direction (anti)parallel to `ahead` would leave x undefined: lean `ahead` a little towards up and right.
    x = torch.linalg.cross(y, ahead + torch.tensor([0.013, 0.021, 0.0], device=y.device))
    x = torch.nn.functional.normalize(x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)
