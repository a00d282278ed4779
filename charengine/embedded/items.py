"""Side-bound items: what a figure holds in, or has instead of, its right or left hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from charengine.embedded.anatomy import Joints
    from charengine.embedded.solids import Look, SolidBuilder
    from charengine.embedded.wearer import Wearer

G_ITEM = 40
_STEEL, _GOLD, _WOOD, _DARK = (0.80, 0.83, 0.88), (0.90, 0.68, 0.22), (0.50, 0.31, 0.15), (0.17, 0.17, 0.2)


def is_item(group: torch.Tensor) -> torch.Tensor:
    """Whether solids of these groups are of a hook or of what a hand holds; same shape, bool."""
    return (group >= G_ITEM) & (group <= G_ITEM + 2)


def add_items(b: SolidBuilder, w: Wearer, j: Joints) -> None:
    """The items of both sides; an eye patch is painted on the face, a mechanical arm is part of the arm."""
    for i, (side, sign) in enumerate((("right", -1.0), ("left", 1.0))):
        hand = j.hands[i]
        arm = normalize(hand - j.elbows[i], dim=-1)
        # A quarter turn of the forearm in the plane of walking: forward for a hanging arm, up for one held forward.
        ahead = normalize(torch.stack([arm[:, 0] * 0, arm[:, 2], -arm[:, 1]], -1) + b.point(0, 0, 1e-3), dim=-1)
        outward = b.point(sign, 0, 0)
        _add_hook(b, w, side, hand, arm, ahead)
        _add_blades(b, w, side, hand, normalize(arm * 0.97 + ahead * 0.12 + outward * 0.03, dim=-1), outward)
        _add_staff(b, w, side, hand, outward, j)
        _add_lantern(b, w, side, hand)
        _add_shield(b, w, side, (hand + j.elbows[i] * 0.35) / 1.35, outward)


def _add_hook(
    b: SolidBuilder, w: Wearer, side: str, hand: torch.Tensor, arm: torch.Tensor, ahead: torch.Tensor
) -> None:
    when = w.has(f"{side}_item", "hook")
    steel: Look = {"colour": _STEEL, "group": G_ITEM + 1, "when": when}
    b.cone(f"{side}_item_0", hand - arm * 0.055, hand + arm * 0.02, 0.062, 0.05, colour=(0.30, 0.20, 0.14),
           group=G_ITEM, when=when)  # fmt: skip
    bend = normalize(ahead * 0.75 + b.point(-1.0 if side == "right" else 1.0, 0, 0) * 0.65, dim=-1)
    points = [
        hand + arm * a + bend * c
        for a, c in ((0.01, 0), (0.09, -0.035), (0.165, 0.005), (0.165, 0.075), (0.095, 0.105))
    ]
    for k in range(4):
        b.cone(f"{side}_item_{k + 1}", points[k], points[k + 1], 0.021, 0.021 if k < 3 else 0.008, **steel)


def _add_blades(
    b: SolidBuilder, w: Wearer, side: str, hand: torch.Tensor, along: torch.Tensor, outward: torch.Tensor
) -> None:
    item = f"{side}_item"
    sword, axe = w.has(item, "sword"), w.has(item, "axe")
    across = normalize(torch.linalg.cross(outward, along), dim=-1)
    # An axe is turned a little outward, so that its blades show from the front as well as from the side.
    turned = normalize(outward * 0.72 + b.point(0, 0, 0.69), dim=-1)
    blade = normalize(torch.linalg.cross(turned, along), dim=-1)
    steel: Look = {"colour": _STEEL, "group": G_ITEM + 1}
    b.cone(f"{side}_item_0", hand - along * 0.10, hand + along * 0.08, 0.019, 0.019, colour=(0.35, 0.22, 0.12),
           group=G_ITEM, when=sword)  # fmt: skip
    b.cone(f"{side}_item_1", hand + along * 0.07, hand + along * 0.56, 0.038, 0.030, 0.35, outward, when=sword, **steel)
    b.cone(f"{side}_item_2", hand + along * 0.56, hand + along * 0.65, 0.030, 0.002, 0.35, outward, when=sword, **steel)
    guard = hand + along * 0.065
    b.cone(f"{side}_item_3", guard - across * 0.10, guard + across * 0.10, 0.022, 0.022, colour=_GOLD, group=G_ITEM + 2,
           when=sword)  # fmt: skip
    b.cone(f"{side}_item_0", hand - along * 0.14, hand + along * 0.42, 0.02, 0.02, colour=_WOOD, group=G_ITEM, when=axe)
    head = hand + along * 0.36
    for k, way in ((1, 1.0), (2, -1.0)):
        b.cone(f"{side}_item_{k}", head, head + blade * (0.115 * way), 0.03, 0.105, 0.16, turned, when=axe, **steel)


def _add_staff(b: SolidBuilder, w: Wearer, side: str, hand: torch.Tensor, outward: torch.Tensor, j: Joints) -> None:
    when = w.has(f"{side}_item", "staff")
    up = b.point(0, 1, 0.0)
    foot = hand - up * (hand[:, 1:2] * 0.92).clamp(max=0.75)
    top = hand + up * 0.62
    b.cone(f"{side}_item_0", foot, top, 0.019, 0.022, colour=_WOOD, group=G_ITEM, when=when)
    b.ellipsoid(f"{side}_item_1", top, b.point(0.055, 0.055, 0.055), colour=(0.55, 0.35, 0.95), group=G_ITEM + 1,
                glow=1.0, when=when)  # fmt: skip
    b.cone(f"{side}_item_2", top - up * 0.075, top - up * 0.035, 0.026, 0.05, colour=_GOLD, group=G_ITEM + 2, when=when)


def _add_lantern(b: SolidBuilder, w: Wearer, side: str, hand: torch.Tensor) -> None:
    when = w.has(f"{side}_item", "lantern")
    up = b.point(0, 1, 0)
    body = hand - up * 0.17
    b.cone(f"{side}_item_0", hand, body + up * 0.08, 0.012, 0.012, colour=_DARK, group=G_ITEM, when=when)
    b.cone(f"{side}_item_1", body - up * 0.065, body + up * 0.055, 0.064, 0.064, colour=(1.0, 0.88, 0.35),
           group=G_ITEM + 1, glow=1.0, when=when)  # fmt: skip
    b.cone(f"{side}_item_2", body + up * 0.05, body + up * 0.10, 0.076, 0.02, colour=_DARK, group=G_ITEM, when=when)
    b.cone(f"{side}_item_3", body - up * 0.09, body - up * 0.06, 0.076, 0.076, colour=_DARK, group=G_ITEM, when=when)


def _add_shield(b: SolidBuilder, w: Wearer, side: str, centre: torch.Tensor, outward: torch.Tensor) -> None:
    when = w.has(f"{side}_item", "shield")
    face = normalize(outward * 0.72 + b.point(0, 0, 0.70), dim=-1)
    middle = centre + face * 0.065
    b.cone(f"{side}_item_0", middle - face * 0.012, middle + face * 0.012, 0.165, 0.165, colour=(0.62, 0.42, 0.20),
           group=G_ITEM, when=when)  # fmt: skip
    b.cone(f"{side}_item_1", middle + face * 0.010, middle + face * 0.018, 0.115, 0.115, colour=(0.75, 0.20, 0.16),
           group=G_ITEM + 1, when=when)  # fmt: skip
    b.ellipsoid(
        f"{side}_item_2", middle + face * 0.02, b.point(0.05, 0.05, 0.05), colour=_STEEL, group=G_ITEM + 2, when=when
    )
