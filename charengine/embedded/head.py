"""Head, hair and headgear of the embedded figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from charengine.embedded import solids as look

if TYPE_CHECKING:
    from charengine.embedded.anatomy import Joints
    from charengine.embedded.solids import Look, SolidBuilder
    from charengine.embedded.wearer import Wearer

G_HEAD, G_HAIR, G_GEAR, G_EAR, G_TIE = 8, 10, 12, 14, 16
_STEEL, _GOLD, _BONE, _DARK = (0.70, 0.73, 0.78), (0.98, 0.79, 0.20), (0.88, 0.82, 0.68), (0.2, 0.2, 0.23)


class _Skull:
    """Places things relative to the head: own right (x is the character's left), up and forward, in head radii."""

    def __init__(self, b: SolidBuilder, w: Wearer, j: Joints) -> None:
        self.b = b
        self.axes = torch.stack([torch.linalg.cross(j.up, j.forward), j.up, j.forward], dim=-1)
        self.centre = j.head
        self.radii = torch.stack([j.size["head_width"], j.size["head_height"], j.size["head_width"] * 1.02], -1)
        self.width = j.size["head_width"]
        self.cap = torch.where(w.has("species", "robot"), 1.20, 1.10)[:, None]  # hair clears a robot's corners

    def at(self, x: float, y: float, z: float) -> torch.Tensor:
        """A point in head radii."""
        own = self.radii * torch.tensor([x, y, z], device=self.radii.device)
        return self.centre + (self.axes @ own[..., None])[..., 0]

    def size(self, x: float, y: float, z: float) -> torch.Tensor:
        """Radii (n, 3) in head widths."""
        return self.width[:, None] * torch.tensor([x, y, z], device=self.radii.device)


def add_head(b: SolidBuilder, w: Wearer, j: Joints) -> None:
    """Everything above the neck, and the catfolk's tail."""
    s = _Skull(b, w, j)
    robot = w.has("species", "robot")
    face: Look = {"colour": w.skin, "group": G_HEAD, "paint": look.FACE}
    b.ellipsoid("skull", s.centre, s.radii, s.axes, when=~robot, **face)
    b.cone("skull", s.at(0, -0.92, 0), s.at(0, 0.80, 0), s.width * 0.92, s.width * 0.88, when=robot, **face)
    _add_species_parts(b, w, j, s)
    _add_hair(b, w, s)
    _add_headgear(b, w, s)


def _add_species_parts(b: SolidBuilder, w: Wearer, j: Joints, s: _Skull) -> None:
    skin: Look = {"colour": w.skin, "group": G_EAR}
    robot, alien, cat = w.has("species", "robot"), w.has("species", "alien"), w.has("species", "catfolk")
    elf, goblin, orc = w.has("species", "elf"), w.has("species", "goblin"), w.has("species", "orc")
    rounded = w.has("species", "woman", "man", "girl")
    for i, x in enumerate((-1.0, 1.0)):
        ear = f"ear_{i}"
        b.ellipsoid(ear, s.at(x * 1.0, -0.05, -0.05), s.size(0.14, 0.22, 0.16), s.axes, when=rounded, **skin)
        b.ellipsoid(ear, s.at(x * 0.98, -0.05, -0.05), s.size(0.16, 0.24, 0.2), s.axes, when=orc, **skin)
        b.cone(
            ear, s.at(x * 0.9, -0.05, -0.05), s.at(x * 1.55, 0.38, -0.35), s.width * 0.22, 0.004, 0.5, when=elf, **skin
        )
        b.cone(ear, s.at(x * 0.85, -0.05, -0.05), s.at(x * 1.50, 0.62, -0.25), s.width * 0.36, 0.004, 0.4, when=goblin,
               **skin)  # fmt: skip
        b.cone(
            ear, s.at(x * 0.55, 0.62, -0.05), s.at(x * 0.84, 1.65, -0.05), s.width * 0.42, 0.004, 0.45, when=cat, **skin
        )
        b.cone(ear, s.at(x * 0.9, 0.0, 0.0), s.at(x * 1.2, 0.0, 0.0), s.width * 0.3, s.width * 0.26, 1.0, when=robot,
               colour=w.skin * 0.55, group=G_EAR)  # fmt: skip
        tip = s.at(x * 0.62, 1.5, 0.0)
        b.cone(f"feeler_{i}", s.at(x * 0.35, 0.8, 0), tip, 0.016, 0.012, when=alien, **skin)
        b.ellipsoid(f"feeler_tip_{i}", tip, s.size(0.15, 0.15, 0.15), when=alien, colour=w.skin * 0.6, group=G_EAR)
        b.cone(f"tusk_{i}", s.at(x * 0.28, -0.60, 0.84), s.at(x * 0.33, -0.34, 1.02), 0.026, 0.006, colour=_BONE,
               group=G_EAR, when=orc)  # fmt: skip
    b.cone("feeler_0", s.at(0, 0.85, 0), s.at(0, 1.35, 0), 0.013, 0.013, when=robot, colour=_DARK, group=G_EAR)
    b.ellipsoid("feeler_tip_0", s.at(0, 1.42, 0), s.size(0.14, 0.14, 0.14), when=robot, colour=(1.0, 0.25, 0.2),
                group=G_EAR, glow=1.0)  # fmt: skip
    nose = w.has("species", "woman", "man", "girl", "elf")
    b.ellipsoid(
        "nose", s.at(0, -0.24, 0.97), s.size(0.085, 0.10, 0.10), s.axes, when=nose, colour=w.skin * 0.93, group=G_HEAD
    )
    b.ellipsoid(
        "nose", s.at(0, -0.20, 0.95), s.size(0.20, 0.15, 0.14), s.axes, when=orc, colour=w.skin * 0.9, group=G_HEAD
    )
    b.cone("nose", s.at(0, -0.12, 0.85), s.at(0, -0.42, 1.55), s.width * 0.17, s.width * 0.06, when=goblin,
           colour=w.skin * 0.93, group=G_EAR)  # fmt: skip
    b.ellipsoid("jaw", s.at(0, -0.45, 0.12), s.size(0.80, 0.55, 0.82), s.axes, when=orc, colour=w.skin, group=G_HEAD)
    b.cone("jaw", s.at(0, -0.55, 0.25), s.at(0, -1.0, 0.32), s.width * 0.62, s.width * 0.5, when=w.has("species", "skeleton"),
           colour=w.skin * 0.92, group=G_HEAD)  # fmt: skip
    root, out = j.hip - j.forward * (j.size["hip"] * 0.7)[:, None], -j.forward
    middle = root + out * 0.09 + b.point(0, -0.12, 0)
    tip = middle + out * 0.05 + b.point(0.0, 0.26, 0)
    tail: Look = {"colour": w.skin * 0.9, "group": G_EAR, "when": cat}
    b.cone("tail", root, middle, 0.034, 0.034, **tail)
    b.ellipsoid("tail_bend", middle, b.point(0.036, 0.036, 0.036), **tail)
    b.cone("tail_end", middle, tip, 0.034, 0.03, **tail)
    b.ellipsoid("tail_tip", tip, b.point(0.036, 0.05, 0.036), **tail)


def _add_hair(b: SolidBuilder, w: Wearer, s: _Skull) -> None:
    style = {
        name: w.has("hair_style", name) for name in ("short", "long", "ponytail", "mohawk", "bun", "braids", "curly")
    }
    hair: Look = {"colour": w.hair, "group": G_HAIR}
    capped = style["short"] | style["long"] | style["ponytail"] | style["bun"] | style["braids"]
    hood, covered = w.has("headgear", "hood"), w.has("headgear", "hat", "pointed hat", "helmet")
    b.ellipsoid("hair_cap", s.at(0, 0.05, -0.04), s.radii * s.cap, s.axes, 0.78, low=-0.06, when=capped, **hair)
    b.ellipsoid(
        "hair_cap", s.at(0, 0.10, -0.06), s.radii * (s.cap + 0.2), s.axes, 0.72, low=-0.02, when=style["curly"], **hair
    )
    b.ellipsoid("fringe", s.at(0.25, 0.66, 0.60), s.size(0.62, 0.26, 0.42), s.axes, when=capped & ~covered, **hair)
    for i, x in enumerate((-1.0, 1.0)):
        lock, loose = f"lock_{i}", ~hood
        b.cone(lock, s.at(x * 0.86, 0.2, -0.15), s.at(x * 0.98, -1.55, -0.1), s.width * 0.30, s.width * 0.20,
               when=style["long"] & loose, **hair)  # fmt: skip
        b.cone(lock, s.at(x * 0.95, -0.1, -0.1), s.at(x * 1.12, -1.35, 0.2), s.width * 0.21, s.width * 0.17,
               when=style["braids"] & loose, **hair)  # fmt: skip
        b.ellipsoid(
            f"lock_tip_{i}", s.at(x * 1.12, -1.6, 0.2), s.size(0.17, 0.30, 0.17), when=style["braids"] & loose, **hair
        )
        b.ellipsoid(f"tie_{i}", s.at(x * 1.12, -1.36, 0.2), s.size(0.20, 0.09, 0.20), when=style["braids"] & loose,
                    colour=(0.9, 0.25, 0.25), group=G_TIE)  # fmt: skip
        b.ellipsoid(f"curl_{i}", s.at(x * 0.98, 0.25, -0.1), s.size(0.48, 0.55, 0.55), when=style["curly"], **hair)
        b.ellipsoid(f"curl_top_{i}", s.at(x * 0.55, 0.98, 0.15), s.size(0.48, 0.42, 0.5), when=style["curly"], **hair)
    b.ellipsoid("curl_front", s.at(0, 0.92, 0.62), s.size(0.55, 0.34, 0.4), when=style["curly"], **hair)
    b.ellipsoid("back_hair", s.at(0, -0.75, -0.55), s.radii * b.point(0.92, 1.30, 0.52), s.axes,
                when=style["long"] & ~hood, **hair)  # fmt: skip
    b.ellipsoid("back_hair", s.at(0, 0.20, -1.05), s.size(0.30, 0.28, 0.30), when=style["ponytail"] & ~hood,
                colour=(0.9, 0.25, 0.25), group=G_TIE)  # fmt: skip
    bend = s.at(0, 0.10, -1.45)
    b.ellipsoid("tail_root", bend, s.size(0.32, 0.36, 0.32), when=style["ponytail"] & ~hood, **hair)
    b.cone(
        "tail_hair", bend, s.at(0, -1.35, -1.35), s.width * 0.31, s.width * 0.08, when=style["ponytail"] & ~hood, **hair
    )
    b.ellipsoid("tail_root", s.at(0, 1.18, -0.25), s.size(0.46, 0.42, 0.46), when=style["bun"], **hair)
    b.ellipsoid("back_hair", s.at(0, 0.42, -0.12), s.radii * b.point(0.17, 1.18, 1.22), s.axes, 0.6, low=-0.05,
                when=style["mohawk"], **hair)  # fmt: skip


def _add_headgear(b: SolidBuilder, w: Wearer, s: _Skull) -> None:
    hat, pointed, hood = (w.has("headgear", name) for name in ("hat", "pointed hat", "hood"))
    crown, horns, helmet = (w.has("headgear", name) for name in ("crown", "horns", "helmet"))
    cloth: Look = {"colour": w.headgear, "group": G_GEAR}
    band: Look = {"colour": w.headgear * 0.35 + 0.5 * (w.headgear.mean(1, keepdim=True) < 0.45), "group": G_TIE}
    brim_low, brim_high = s.at(0, 0.52, -0.05), s.at(0, 0.62, -0.07)
    b.cone("brim", brim_low, brim_high, s.width * 1.50, s.width * 1.47, 1.0, when=hat | pointed, **cloth)
    b.cone("gear", brim_high, s.at(0, 1.32, -0.12), s.width * 1.08, s.width * 0.92, 1.0, when=hat, **cloth)
    b.cone("gear", brim_high, s.at(0, 2.25, -0.35), s.width * 1.06, 0.012, 1.0, when=pointed, **cloth)
    b.cone("band", brim_high, s.at(0, 0.80, -0.08), s.width * 1.12, s.width * 1.08, 1.0, when=hat, **band)
    b.cone("band", brim_high, s.at(0, 0.78, -0.09), s.width * 1.10, s.width * 1.0, 1.0, when=pointed, **band)
    b.ellipsoid("gear", s.at(0, 0.06, -0.10), s.radii * 1.28, s.axes, 0.95, low=-0.36, when=hood, **cloth)
    b.cone(
        "brim", s.at(0, -1.45, -0.05), s.at(0, -0.70, -0.12), s.width * 1.25, s.width * 0.80, 0.85, when=hood, **cloth
    )
    b.ellipsoid("gear", s.at(0, 0.06, -0.02), s.radii * (s.cap + 0.09), s.axes, 0.30, low=0.12, colour=_STEEL,
                group=G_GEAR, when=helmet)  # fmt: skip
    b.cone("brim", s.at(0, 0.24, 0.03), s.at(0, 0.42, 0.0), s.width * 1.24, s.width * 1.22, 1.0,
           colour=(0.55, 0.58, 0.63), group=G_TIE, when=helmet)  # fmt: skip
    b.cone("band", s.at(0, 0.42, 1.16), s.at(0, -0.22, 1.20), 0.024, 0.018, colour=(0.55, 0.58, 0.63), group=G_TIE,
           when=helmet)  # fmt: skip
    b.cone("gear", s.at(0, 0.66, -0.05), s.at(0, 1.0, -0.08), s.width * 0.92, s.width * 1.0, 1.0, colour=_GOLD,
           group=G_GEAR, when=crown)  # fmt: skip
    for k, angle in enumerate(torch.arange(6) * (torch.pi / 3)):
        x, z = float(angle.sin()) * 0.9, float(angle.cos()) * 0.9
        b.cone(f"spike_{k}", s.at(x, 0.95, z - 0.08), s.at(x * 1.12, 1.42, z * 1.12 - 0.08), s.width * 0.24, 0.004,
               colour=_GOLD, group=G_GEAR, when=crown)  # fmt: skip
    for i, x in enumerate((-1.0, 1.0)):
        bend = s.at(x * 1.15, 0.98, 0.1)
        bone: Look = {"colour": _BONE, "group": G_GEAR, "when": horns}
        b.cone(f"spike_{i}", s.at(x * 0.62, 0.62, 0.1), bend, s.width * 0.26, s.width * 0.20, **bone)
        b.ellipsoid(f"spike_{i + 2}", bend, s.size(0.2, 0.2, 0.2), **bone)
        b.cone(f"spike_{i + 4}", bend, s.at(x * 0.98, 1.72, 0.15), s.width * 0.20, 0.005, **bone)
