"""Proportions, colours and poses of the embedded figures: plain tables, and the joints they give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from charengine.embedded.traits import COLUMN, POSES, TRAITS

CLOTH = {
    "none": (0.5, 0.5, 0.5), "white": (0.96, 0.96, 0.95), "black": (0.15, 0.15, 0.17), "grey": (0.55, 0.56, 0.58),
    "red": (0.84, 0.14, 0.14), "blue": (0.16, 0.33, 0.83), "green": (0.14, 0.56, 0.24), "yellow": (0.98, 0.83, 0.16),
    "purple": (0.55, 0.22, 0.72), "brown": (0.48, 0.30, 0.17), "orange": (0.97, 0.53, 0.10),
}  # fmt: skip
SKIN = {
    "pale": (0.99, 0.86, 0.76), "tan": (0.87, 0.64, 0.43), "brown": (0.60, 0.38, 0.24), "dark": (0.33, 0.21, 0.16),
    "green": (0.45, 0.72, 0.32), "blue": (0.42, 0.63, 0.93), "grey": (0.60, 0.62, 0.66), "white": (0.95, 0.95, 0.97),
    "red": (0.86, 0.27, 0.23),
}  # fmt: skip
HAIR = {
    "none": (0.5, 0.5, 0.5), "black": (0.13, 0.12, 0.14), "brown": (0.43, 0.26, 0.14), "blonde": (0.96, 0.81, 0.36),
    "red": (0.80, 0.27, 0.10), "white": (0.94, 0.94, 0.95), "blue": (0.20, 0.40, 0.92), "green": (0.18, 0.66, 0.26),
    "pink": (0.98, 0.50, 0.76),
}  # fmt: skip
GLOW = {"none": (0.5, 0.5, 0.5), "blue": (0.10, 0.85, 1.0), "green": (0.25, 1.0, 0.20), "red": (1.0, 0.15, 0.20)}

# head width, head height, torso, leg, arm, shoulder, hip, waist, limb radius  (world units; a figure is about 1.8 tall)
_SPECIES = {
    "woman": (0.185, 0.215, 0.50, 0.78, 0.50, 0.150, 0.150, 0.105, 0.050),
    "man": (0.185, 0.215, 0.54, 0.78, 0.54, 0.195, 0.130, 0.135, 0.060),
    "girl": (0.195, 0.215, 0.38, 0.50, 0.37, 0.125, 0.120, 0.105, 0.045),
    "robot": (0.175, 0.180, 0.54, 0.74, 0.54, 0.185, 0.130, 0.130, 0.055),
    "elf": (0.170, 0.205, 0.52, 0.86, 0.53, 0.155, 0.125, 0.105, 0.046),
    "orc": (0.205, 0.205, 0.58, 0.74, 0.60, 0.200, 0.155, 0.155, 0.068),
    "goblin": (0.205, 0.205, 0.40, 0.50, 0.45, 0.135, 0.120, 0.120, 0.045),
    "skeleton": (0.180, 0.205, 0.50, 0.80, 0.53, 0.165, 0.115, 0.100, 0.032),
    "alien": (0.215, 0.265, 0.44, 0.68, 0.52, 0.125, 0.105, 0.085, 0.036),
    "catfolk": (0.195, 0.200, 0.48, 0.72, 0.48, 0.150, 0.140, 0.110, 0.050),
}
_COLUMNS = ("head_width", "head_height", "torso", "leg", "arm", "shoulder", "hip", "waist", "limb")
# width of the body, length of the legs, length of the torso, thickness of the limbs
_BUILD = {
    "average": (1.0, 1.0, 1.0, 1.0),
    "slim": (0.80, 1.02, 1.0, 0.70),
    "stocky": (1.28, 0.86, 0.97, 1.28),
    "tall": (0.94, 1.30, 1.12, 0.95),
}

# Degrees: arms (swing forward from hanging, away from the body) for upper and lower arm, right then left;
# legs the same; then torso lean and height above the ground (world units).
_POSES = {
    "standing": ((0, 11, 14, 5), (0, 11, 14, 5), (0, 3, 0, 3), (0, 3, 0, 3), 0, 0),
    "walking": ((-32, 8, -12, 4), (28, 8, 50, 4), (26, 2, 14, 2), (-20, 2, -42, 2), 2, 0),
    "running": ((-55, 10, 20, 8), (45, 10, 115, 5), (62, 2, -12, 2), (-24, 2, -95, 2), 14, 0.06),
    "waving": ((20, 125, 10, 172), (0, 11, 14, 5), (0, 3, 0, 3), (0, 5, 0, 5), 0, 0),
    "arms raised": ((0, 150, 0, 165), (0, 150, 0, 165), (0, 6, 0, 6), (0, 6, 0, 6), 0, 0),
    "sitting": ((22, 10, 62, -6), (22, 10, 62, -6), (84, 10, 4, 4), (84, 10, 4, 4), 0, 0),
    "kneeling": ((15, 10, 60, 0), (5, 10, 25, 5), (88, 8, 2, 4), (-4, 6, -86, 4), 3, 0),
    "fighting stance": ((35, 28, 112, -12), (58, 18, 118, -22), (32, 16, -4, 14), (-24, 18, -44, 12), 8, 0),
    "pointing": ((84, 22, 86, 22), (0, 12, 14, 5), (0, 3, 0, 3), (0, 5, 0, 5), 0, 0),
    "jumping": ((15, 118, 10, 150), (15, 118, 10, 150), (48, 14, -46, 8), (22, 16, -70, 8), 4, 0.28),
    "hands on hips": ((-12, 48, 12, -52), (-12, 48, 12, -52), (0, 6, 0, 6), (0, 6, 0, 6), 0, 0),
    "dancing": ((0, 148, 0, 158), (10, 82, 40, 20), (4, 2, 2, 2), (26, 42, -38, 18), 0, 0.0),
}


@dataclass
class Joints:
    """Positions (n, 3) and sizes (n,) of one batch of figures facing +z, feet on y = 0; sides are right, left."""

    hip: torch.Tensor
    chest: torch.Tensor
    neck: torch.Tensor
    head: torch.Tensor
    up: torch.Tensor
    forward: torch.Tensor
    shoulders: tuple[torch.Tensor, torch.Tensor]
    elbows: tuple[torch.Tensor, torch.Tensor]
    hands: tuple[torch.Tensor, torch.Tensor]
    thighs: tuple[torch.Tensor, torch.Tensor]
    knees: tuple[torch.Tensor, torch.Tensor]
    ankles: tuple[torch.Tensor, torch.Tensor]
    size: dict[str, torch.Tensor]


def table(values: Mapping[str, tuple[float, ...]], device: torch.device) -> torch.Tensor:
    """The rows of a table as a float tensor."""
    return torch.tensor(list(values.values()), device=device, dtype=torch.float32)


def colour_of(indices: torch.Tensor, trait: str, palette: Mapping[str, tuple[float, ...]]) -> torch.Tensor:
    """The colour (n, 3) a trait names in a palette."""
    rows = torch.tensor([palette[value] for value in TRAITS[trait]], device=indices.device)
    return rows[indices[:, COLUMN[trait]]]


def swing(forward: torch.Tensor, outward: torch.Tensor, side: float) -> torch.Tensor:
    """Direction (n, 3) of a limb hanging down, lifted outward and swung forward by these angles in degrees."""
    f, o = forward * (math.pi / 180), outward * (math.pi / 180)
    return torch.stack([side * o.sin(), -f.cos() * o.cos(), f.sin() * o.cos()], dim=-1)


def body_sizes(indices: torch.Tensor) -> dict[str, torch.Tensor]:
    """Lengths and radii (n,) by name for each species and build."""
    device = indices.device
    species = table(_SPECIES, device)[indices[:, COLUMN["species"]]]
    build = table(_BUILD, device)[indices[:, COLUMN["build"]]]
    size = dict(zip(_COLUMNS, species.unbind(1), strict=True))
    wide, leg, torso, limb = build.unbind(1)
    for name in ("hip", "waist"):
        size[name] = size[name] * wide
    size["shoulder"] = size["shoulder"] * (0.6 + 0.4 * wide)
    size["leg"], size["torso"], size["limb"] = size["leg"] * leg, size["torso"] * torso, size["limb"] * limb
    size["arm"] = size["arm"] * (0.5 + 0.5 * torso)
    return size


def pose_joints(indices: torch.Tensor, pose: torch.Tensor) -> Joints:
    """Joint positions of each figure in its pose, lowest foot on the ground (or in the air by the pose's height)."""
    device, size = indices.device, body_sizes(indices)
    rows = [[*a, *b, *c, *d, lean, high] for a, b, c, d, lean, high in (_POSES[name] for name in POSES)]
    angles = torch.tensor(rows, device=device, dtype=torch.float32)[pose].unbind(1)
    lean, zero = angles[16] * (math.pi / 180), torch.zeros_like(size["hip"])
    up = torch.stack([zero, lean.cos(), lean.sin()], -1)
    forward = torch.stack([zero, -lean.sin(), lean.cos()], -1)
    right = torch.stack([zero - 1, zero, zero], -1)
    chest = up * size["torso"][:, None]
    neck = chest + up * 0.05
    head = neck + up * (size["head_height"] * 0.86)[:, None] + forward * 0.02
    limbs: dict[str, list[torch.Tensor]] = {k: [] for k in ("shoulder", "elbow", "hand", "thigh", "knee", "ankle")}
    for i, side in enumerate((-1.0, 1.0)):
        out = right * -side
        shoulder = chest - up * 0.045 + out * size["shoulder"][:, None]
        elbow = shoulder + swing(angles[4 * i], angles[4 * i + 1], side) * (size["arm"] * 0.5)[:, None]
        hand = elbow + swing(angles[4 * i + 2], angles[4 * i + 3], side) * (size["arm"] * 0.46)[:, None]
        thigh = out * (size["hip"] * 0.52)[:, None]
        knee = thigh + swing(angles[8 + 4 * i], angles[9 + 4 * i], side) * (size["leg"] * 0.5)[:, None]
        ankle = knee + swing(angles[10 + 4 * i], angles[11 + 4 * i], side) * (size["leg"] * 0.5)[:, None]
        for name, point in zip(limbs, (shoulder, elbow, hand, thigh, knee, ankle), strict=True):
            limbs[name].append(point)
    knees, ankles = limbs["knee"], limbs["ankle"]
    lowest = torch.stack([p[:, 1] for p in (*knees, *ankles)]).amin(0)
    lift = torch.stack([zero, angles[17] + 0.06 - lowest, zero], -1)
    pairs = {name: (points[0] + lift, points[1] + lift) for name, points in limbs.items()}
    return Joints(
        hip=lift, chest=chest + lift, neck=neck + lift, head=head + lift, up=up, forward=forward,
        shoulders=pairs["shoulder"], elbows=pairs["elbow"], hands=pairs["hand"],
        thighs=pairs["thigh"], knees=pairs["knee"], ankles=pairs["ankle"], size=size,
    )  # fmt: skip
