"""Builds the solids of a batch of characters from their traits and pose."""

from __future__ import annotations

import torch

from charengine.embedded import solids as look
from charengine.embedded.anatomy import GLOW, Joints, colour_of, pose_joints
from charengine.embedded.head import add_head
from charengine.embedded.items import add_items
from charengine.embedded.paint import ALIEN, CAT, FIERCE, HUMAN, MACHINE, SKULL
from charengine.embedded.solids import Look, SolidBatch, SolidBuilder
from charengine.embedded.traits import COLUMN, POSES, TRAITS
from charengine.embedded.wearer import Wearer

SIDES = ("right", "left")
_FACES = {"robot": MACHINE, "skeleton": SKULL, "alien": ALIEN, "catfolk": CAT, "orc": FIERCE, "goblin": FIERCE}
# Outline groups: a line is drawn where two of them meet.
G_SKIN, G_TOP, G_LEG, G_FOOT, G_SKIRT, G_BELT, G_ARM = 1, 2, 3, 4, 5, 6, 20


def build_figures(indices: torch.Tensor, pose: torch.Tensor) -> tuple[SolidBatch, dict[str, torch.Tensor]]:
    """The solids of each figure facing +z with feet on y = 0, and the look of its face."""
    wearer, joints = Wearer(indices), pose_joints(indices, pose)
    builder = SolidBuilder(len(indices), indices.device)
    _add_torso(builder, wearer, joints)
    for i, side in enumerate(SIDES):
        _add_arm(builder, wearer, joints, i, side)
        _add_leg(builder, wearer, joints, i, side)
    _add_skirts(builder, wearer, joints)
    add_head(builder, wearer, joints)
    add_items(builder, wearer, joints)
    _add_stool(builder, joints, pose)
    return builder.build(), _face(wearer)


def _add_stool(b: SolidBuilder, j: Joints, pose: torch.Tensor) -> None:
    seat = j.hip - b.point(0, 0.115, 0) - j.forward * 0.02
    ground = seat * b.point(1, 0, 1)
    wood: Look = {"group": G_SKIRT + 60, "when": pose == POSES.index("sitting")}
    b.cone("stool_seat", seat - b.point(0, 0.03, 0), seat, j.size["hip"] * 1.15, j.size["hip"] * 1.15,
           colour=(0.62, 0.42, 0.22), **wood)  # fmt: skip
    b.cone("stool_leg", ground, seat - b.point(0, 0.03, 0), j.size["hip"] * 0.9, j.size["hip"] * 0.8,
           colour=(0.45, 0.29, 0.15), **wood)  # fmt: skip


def _face(wearer: Wearer) -> dict[str, torch.Tensor]:
    device = wearer.indices.device
    styles = torch.tensor([_FACES.get(s, HUMAN) for s in TRAITS["species"]], device=device)
    patch = wearer.has("left_item", "eye patch").float() - wearer.has("right_item", "eye patch").float()
    dark_eyes = torch.tensor([0.20, 0.32, 0.55], device=device).expand(len(patch), 3)
    brow = torch.where(wearer.has("hair_style", "bald")[:, None], wearer.skin * 0.45, wearer.hair * 0.7)
    return {
        "style": styles[wearer.indices[:, COLUMN["species"]]],
        "patch": patch,
        "eyes": dark_eyes,
        "brow": brow,
        "tattoo": colour_of(wearer.indices, "tattoo", GLOW),
        "tattooed": (~wearer.has("tattoo", "none")).float(),
    }


def _add_torso(b: SolidBuilder, w: Wearer, j: Joints) -> None:
    size, up = j.size, j.up
    hip, chest = j.hip, j.chest
    waist = hip + (chest - hip) * 0.38
    upper = hip + (chest - hip) * 0.86
    shoulder, hips, waist_radius = size["shoulder"], size["hip"], size["waist"]
    chest_radius = torch.maximum(shoulder * 0.84, waist_radius)
    paint = torch.full_like(w.pattern, look.PLAIN)
    for top, code in (("coat", look.OPENING), ("vest", look.SPLIT), ("armour", look.PLATES)):
        paint = torch.where(w.has("top", top), code, paint)
    cloth: Look = {"colour": w.top, "pattern": w.pattern, "group": G_TOP, "paint": paint}
    b.cone("torso", waist - up * 0.02, upper, waist_radius, chest_radius, 0.68, j.forward, **cloth)
    yoke = basis(j)
    b.ellipsoid("yoke", upper, torch.stack([chest_radius, b.number(0.085), chest_radius * 0.68], -1), yoke, **cloth)
    lower: Look = {**cloth, "paint": torch.where(w.has("top", "coat", "armour"), look.PLAIN, paint)}
    b.cone("belly", hip - up * 0.03, waist, hips, waist_radius * 1.02, 0.74, j.forward, **lower)
    one_piece = w.has("top", "robe", "dress")
    below = torch.where(one_piece[:, None], w.top, w.bottom)
    pelvis = torch.stack([hips, b.number(0.085), hips * 0.74], -1)
    b.ellipsoid("pelvis", hip - up * 0.025, pelvis, yoke, colour=below, group=G_LEG)
    b.cone("neck", chest - up * 0.04, j.head, size["limb"] * 0.55 + 0.022, size["limb"] * 0.55 + 0.022, colour=w.skin,
           group=G_SKIN)  # fmt: skip
    belted = w.has("top", "tunic", "robe", "dress", "armour")
    leather = torch.tensor([0.36, 0.22, 0.12], device=w.top.device).expand_as(w.top)
    sash = torch.where(
        w.has("top", "robe", "dress")[:, None], w.top * 0.35 + 0.55 * (w.top.mean(1, keepdim=True) < 0.5), leather
    )
    b.cone("belt", waist - up * 0.025, waist + up * 0.025, waist_radius * 1.1, waist_radius * 1.1, 0.74, j.forward,
           colour=sash, group=G_BELT, when=belted)  # fmt: skip
    collar = w.has("top", "coat", "robe")
    b.cone("collar", chest - up * 0.01, chest + up * 0.055, size["limb"] * 0.6 + 0.055, size["limb"] * 0.6 + 0.07, 0.9,
           j.forward, colour=w.top * 0.75, group=G_BELT, when=collar)  # fmt: skip


def basis(j: Joints) -> torch.Tensor:
    """Axes (n, 3, 3) of the upper body: right-hand side, up, forward."""
    return torch.stack([torch.linalg.cross(j.up, j.forward), j.up, j.forward], dim=-1)


def _add_arm(b: SolidBuilder, w: Wearer, j: Joints, i: int, side: str) -> None:
    shoulder, elbow, hand, limb = j.shoulders[i], j.elbows[i], j.hands[i], j.size["limb"]
    item = f"{side}_item"
    mechanical, hooked = w.has(item, "mechanical arm"), w.has(item, "hook")
    sleeved, long = w.has("top", "shirt", "coat", "tunic", "robe", "armour"), w.has("top", "coat", "robe")
    brass = torch.tensor([0.86, 0.62, 0.22], device=w.skin.device).expand_as(w.skin)
    skin = torch.where(mechanical[:, None], brass, w.skin)
    sleeve = sleeved & ~mechanical
    group = G_ARM + i
    colour = torch.where(sleeve[:, None], w.top, skin)
    pattern = torch.where(sleeve, w.pattern, 0)
    gears = torch.where(mechanical, look.SEGMENTS, look.PLAIN)
    thick = torch.where(sleeve, limb * 1.12 + 0.012, limb)
    thick = torch.where(mechanical, torch.maximum(thick, b.number(0.055)), thick)
    b.ellipsoid(f"{side}_shoulder", shoulder, (thick * 1.12)[:, None].expand(-1, 3), colour=colour, group=group,
                pattern=torch.where(pattern == 1, 0, pattern))  # fmt: skip
    plated = w.has("top", "armour") & ~mechanical
    steel = torch.tensor([0.76, 0.79, 0.84], device=w.skin.device).expand_as(w.skin)
    b.ellipsoid(f"{side}_pauldron", shoulder + j.up * 0.02, torch.stack([limb * 1.3 + 0.04, limb + 0.035, limb * 1.3 + 0.04], -1),
                low=-0.35, colour=steel, group=group + 4, when=plated)  # fmt: skip
    b.cone(f"{side}_upper_arm", shoulder, elbow, thick, thick * 0.92, colour=colour, pattern=pattern, group=group,
           paint=gears)  # fmt: skip
    joint = torch.where(mechanical[:, None], brass * 0.4, torch.where(long[:, None], colour, skin))
    b.ellipsoid(f"{side}_elbow", elbow,
                (torch.where(long & ~mechanical, thick * 0.94, limb * 0.95))[:, None].expand(-1, 3), colour=joint,
                group=group)  # fmt: skip
    wrist = elbow + (hand - elbow) * 0.86
    rings = torch.where(mechanical, look.SEGMENTS, look.RINGS)
    thin = torch.where(mechanical, torch.maximum(limb * 0.9, b.number(0.046)), limb * 0.88)
    b.cone(f"{side}_forearm", elbow, wrist, thin, thin * 0.9, colour=skin, group=group, paint=rings)
    cuff = elbow + (hand - elbow) * 0.42
    wide = torch.where(w.has("top", "robe"), limb * 1.2 + 0.045, limb * 1.1 + 0.015)
    b.cone(f"{side}_sleeve", elbow, cuff, thick * 0.94, wide, colour=w.top, pattern=w.pattern, group=group + 2,
           when=long & ~mechanical)  # fmt: skip
    palm = torch.maximum(limb * 0.95, b.number(0.044))
    b.ellipsoid(f"{side}_hand", hand, palm[:, None].expand(-1, 3), colour=torch.where(mechanical[:, None], brass * 0.8, skin),
                group=group + 6, when=~hooked)  # fmt: skip


def _add_leg(b: SolidBuilder, w: Wearer, j: Joints, i: int, side: str) -> None:
    thigh, knee, ankle, limb = j.thighs[i], j.knees[i], j.ankles[i], j.size["limb"]
    trousers = w.has("bottom", "trousers")
    cloth = torch.where(trousers[:, None], w.bottom, w.skin)
    leg = torch.where(trousers, limb * 1.12 + 0.016, limb)
    top = torch.maximum(leg * 1.25, j.size["hip"] * 0.48)
    b.cone(f"{side}_thigh", thigh, knee, torch.where(trousers, top, leg * 1.25), leg, colour=cloth, group=G_LEG)
    b.ellipsoid(f"{side}_knee", knee, (leg * 1.0)[:, None].expand(-1, 3), colour=cloth, group=G_LEG)
    b.cone(f"{side}_shin", knee, ankle, leg, leg * 0.86, colour=cloth, group=G_LEG)
    short = thigh + (knee - thigh) * 0.74
    b.cone(f"{side}_shorts", thigh, short, torch.maximum(limb * 1.35 + 0.012, j.size["hip"] * 0.46), limb * 1.3 + 0.03, colour=w.bottom,
           group=G_LEG + 30, when=w.has("bottom", "shorts"))  # fmt: skip
    shoe, boot = ~w.has("footwear", "barefoot"), w.has("footwear", "boots")
    bare = torch.where(shoe[:, None], w.shoes, w.skin)
    shin = torch.nn.functional.normalize(ankle - knee, dim=-1)
    toe = torch.stack([torch.zeros_like(shin[:, 0]), shin[:, 2], -shin[:, 1]], -1)
    toe = torch.nn.functional.normalize(toe, dim=-1)
    scale = torch.where(shoe, 1.15, 1.0)
    radii = torch.stack([limb * 0.5 + 0.032, limb * 0.2 + 0.036, limb * 0.7 + 0.062], -1) * scale[:, None]
    axes = torch.stack([torch.linalg.cross(-shin, toe), -shin, toe], -1)
    b.ellipsoid(f"{side}_foot", ankle + shin * 0.018 + toe * 0.045, radii, axes, colour=bare, group=G_FOOT)
    boot_top = knee + (ankle - knee) * 0.40
    b.cone(f"{side}_boot", boot_top, ankle + shin * 0.02, leg + 0.026, leg * 0.86 + 0.018, colour=w.shoes, group=G_FOOT,
           when=boot)  # fmt: skip
    b.cone(f"{side}_boot_cuff", boot_top - shin * 0.028, boot_top + shin * 0.028, leg + 0.036, leg + 0.036, colour=w.shoes * 0.7 + 0.12,
           group=G_FOOT + 30, when=boot)  # fmt: skip


def _add_skirts(b: SolidBuilder, w: Wearer, j: Joints) -> None:
    """Coat tails, tunic hems, skirts, dresses and robes hang along the mean of the two legs."""
    hip, size = j.hip, j.size
    knees, ankles = (j.knees[0] + j.knees[1]) / 2, (j.ankles[0] + j.ankles[1]) / 2
    thigh_length = size["leg"][:, None] * 0.5
    down = torch.nn.functional.normalize(knees - hip, dim=-1)
    spread = ((j.knees[0] - j.knees[1]).norm(dim=-1) * 0.32 - size["hip"] * 0.3).clamp(min=0)
    start = hip + j.up * 0.05
    flare = size["hip"]
    skirt, dress, robe = w.has("bottom", "skirt"), w.has("top", "dress"), w.has("top", "robe")
    coat, tunic = w.has("top", "coat"), w.has("top", "tunic")
    top_cloth: Look = {"colour": w.top, "pattern": w.pattern, "group": G_SKIRT}
    b.cone("skirt", start, hip + down * thigh_length * 0.80, flare * 0.98, flare * 1.32 + 0.03 + spread, 0.82, colour=w.bottom,
           group=G_SKIRT + 30, when=skirt)  # fmt: skip
    b.cone("hem", start, hip + down * thigh_length * 0.50, flare * 1.02, flare * 1.30 + 0.035 + spread, 0.84, when=coat,
           **{**top_cloth, "paint": torch.full_like(w.pattern, look.OPENING)})  # fmt: skip
    b.cone("hem", start, hip + down * thigh_length * 0.36, flare * 1.02, flare * 1.18 + 0.015 + spread * 0.6, 0.84,
           when=tunic, **top_cloth)  # fmt: skip
    plates: Look = {"colour": b.point(0.74, 0.77, 0.82), "group": G_SKIRT}
    b.cone("hem", start, hip + down * thigh_length * 0.32, flare * 1.04, flare * 1.20 + 0.015 + spread * 0.6, 0.84,
           when=w.has("top", "armour"), **plates)  # fmt: skip
    b.cone("hem", start, hip + down * thigh_length * 0.98, flare * 0.98, flare * 1.42 + 0.06 + spread, 0.84, when=dress,
           **top_cloth)  # fmt: skip
    b.cone("hem", start, hip + down * thigh_length, flare, flare * 1.18 + spread, 0.84, when=robe, **top_cloth)
    knee = hip + down * thigh_length
    shin = torch.nn.functional.normalize(ankles - knees, dim=-1)
    b.cone("robe", knee, knee + shin * (thigh_length * 0.72), flare * 1.18 + spread, flare * 1.38 + 0.02 + spread, 0.84,
           when=robe, **top_cloth)  # fmt: skip
    b.ellipsoid("robe_knee", knee, (flare * 1.15 + spread)[:, None] * b.point(1, 0.5, 0.82), when=robe, **top_cloth)
