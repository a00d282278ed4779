"""Renders embedded characters: any traits, side, pose and background, batched in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from charengine.embedded import raster
from charengine.embedded.figure import build_figures
from charengine.embedded.items import is_item
from charengine.embedded.scenery import draw_background
from charengine.embedded.solids import SolidBatch
from charengine.embedded.traits import VIEWS

VIEW_YAW = {"front": 0.0, "side": math.pi / 2, "back": math.pi}
FILL_HEIGHT, FILL_WIDTH = 0.90, 0.94
_SAMPLES = 2  # per pixel and axis
_ITEM_STEP = 2  # pixels between two rays that look for an item: thinner is none


@dataclass(frozen=True)
class Rendered:
    """Pictures (n, 3, h, w) in [0, 1], the coverage of the figure (n, 1, h, w), and how far each scenery is shifted, (n,) in [0, 1)."""

    image: torch.Tensor
    alpha: torch.Tensor
    shift: torch.Tensor


def view_yaw(views: torch.Tensor) -> torch.Tensor:
    """Yaw (n,) in radians of positions in `VIEWS`."""
    return torch.tensor([VIEW_YAW[v] for v in VIEWS], device=views.device)[views]


def render(
    indices: torch.Tensor,
    *,
    yaw: torch.Tensor,
    pose: torch.Tensor,
    background: torch.Tensor,
    size: tuple[int, int],
    framing: torch.Tensor | float = 1.0,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Rendered:
    """Render one picture of each character.

    Args:
        indices: LongTensor (n, n_traits), see `traits.sample_indices`.
        yaw: (n,) radians; 0 front, pi/2 profile facing the image's right, pi back.
        pose: LongTensor (n,) of positions in `POSES`.
        background: LongTensor (n,) of positions in `BACKGROUNDS`.
        size: (width, height) in pixels.
        framing: zoom (n,) or one number; 1 fits the whole figure, 2 shows its upper half, below 1 leaves room.
        generator: on the CPU; shifts the scenery. None: the same scenery every time.
        chunk: pictures drawn at once; None chooses by device.

    Returns:
        The pictures, on the device of `indices`.
    """
    n, device = len(indices), indices.device
    zoom = torch.as_tensor(framing, dtype=torch.float32, device=device).expand(n)
    shift = torch.zeros(n) if generator is None else torch.rand(n, generator=generator)
    shift = shift.to(device)
    step = chunk or (128 if device.type == "cuda" else 1)
    images, alphas = [], []
    for i in range(0, n, step):
        part = slice(i, i + step)
        image, alpha = _render(indices[part], yaw[part], pose[part], background[part], size, zoom[part], shift[part])
        images.append(image)
        alphas.append(alpha)
    return Rendered(torch.cat(images), torch.cat(alphas), shift)


def render_sheet(
    indices: torch.Tensor, size: int = 384, jitter: torch.Generator | None = None, chunk: int | None = None
) -> torch.Tensor:
    """Sheets (n, 3, size, size): front, side and back, standing, on plain white, each centred in its third.

    With `jitter`, each sheet's figures are up to 3 % smaller, as an edit model's would be.
    """
    n, device = len(indices), indices.device
    zoom = torch.ones(n) if jitter is None else 1 - 0.03 * torch.rand(n, generator=jitter)
    views = torch.arange(len(VIEWS), device=device)
    zero = torch.zeros(n * 3, dtype=torch.long, device=device)
    images = render(
        indices.repeat_interleave(3, 0), yaw=view_yaw(views).repeat(n), pose=zero, background=zero,
        size=(size // 3, size), framing=zoom.to(device).repeat_interleave(3), chunk=chunk,
    ).image  # fmt: skip
    sheet = images.reshape(n, 3, 3, size, size // 3).permute(0, 2, 3, 1, 4).reshape(n, 3, size, size // 3 * 3)
    return F.pad(sheet, (0, size - sheet.shape[-1]), value=1.0)


def item_cells(
    indices: torch.Tensor,
    *,
    yaw: torch.Tensor,
    pose: torch.Tensor,
    size: tuple[int, int],
    framing: torch.Tensor,
    cell: int,
    chunk: int = 128,
) -> torch.Tensor:
    """Where a picture of `render` shows a hook, or what a hand holds: (n, 1, h / cell, w / cell), 1 or 0.

    Args:
        indices: LongTensor (n, n_traits), as all that follows like `render`'s.
        yaw: (n,).
        pose: (n,).
        size: (width, height) in pixels.
        framing: (n,).
        cell: side of a cell in pixels, a multiple of 2.
        chunk: pictures at once.
    """
    found = []
    for part in torch.arange(len(indices), device=indices.device).split(chunk):
        solids, face = build_figures(indices[part], pose[part])
        scale, floor = _fit(solids, size, framing[part])
        white = is_item(solids.group).float()[..., None].expand_as(solids.colour)
        bare, lit = torch.zeros_like(solids.group), torch.ones_like(solids.glow)
        seen = replace(solids, colour=white, pattern=bare, paint=bare, glow=lit).turned(yaw[part])
        rays = _rays(seen, size, scale, floor, 1 / _ITEM_STEP)
        drawn, _ = raster.draw_smooth(seen, *rays, face, 1)
        # ink leaves a fifth of an item's white, and a twentieth where nothing is
        found.append((F.max_pool2d(drawn[:, :1], cell // _ITEM_STEP) > 0.15).float())
    return torch.cat(found)


def template(size: int = 384) -> torch.Tensor:
    """The three-box template (3, size, size): black rules on white."""
    rule = max(2, size // 192)
    image = torch.ones(3, size, size)
    image[:, :rule], image[:, -rule:], image[:, :, :rule], image[:, :, -rule:] = 0, 0, 0, 0
    for k in (1, 2):
        start = round(k * size / 3) - rule // 2
        image[:, :, start : start + rule] = 0
    return image


def _render(
    indices: torch.Tensor, yaw: torch.Tensor, pose: torch.Tensor, background: torch.Tensor,
    size: tuple[int, int], zoom: torch.Tensor, shift: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    height = size[1]
    solids, face = build_figures(indices, pose)
    scale, floor = _fit(solids, size, zoom)  # pixels per unit; world y of the bottom edge
    seen = solids.turned(yaw)
    xs, ys = _rays(seen, size, scale, floor, _SAMPLES)
    premultiplied, alpha = raster.draw_smooth(seen, xs, ys, face, _SAMPLES)
    ground = (height + floor * scale) / height  # where y = 0 lies, as a share of the height
    scene = draw_background(background, size, shift, ground)
    return (premultiplied + scene * (1 - alpha)).clamp(0, 1), alpha


def _rays(
    seen: SolidBatch, size: tuple[int, int], scale: torch.Tensor, floor: torch.Tensor, samples: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """World x of the columns (n, width * samples) and y of the rows (n, height * samples)."""
    width, height = size
    columns = (torch.arange(round(width * samples), device=scale.device) + 0.5) / samples
    rows = (torch.arange(round(height * samples), device=scale.device) + 0.5) / samples
    low, high = seen.extent(0)
    xs = (columns - width / 2) / scale[:, None] + ((low + high) / 2)[:, None]
    return xs, (height - rows) / scale[:, None] + floor[:, None]


def _fit(solids: SolidBatch, size: tuple[int, int], zoom: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for every side of a pose, so that a figure turns without growing; and where the picture ends below."""
    width, height = size
    low, high = solids.extent(1)
    wide, deep = ((b - a) for a, b in (solids.extent(0), solids.extent(2)))
    fitting = torch.minimum(FILL_HEIGHT * height / (high - low), FILL_WIDTH * width / torch.maximum(wide, deep))
    scale = zoom * fitting
    room = height / scale
    centred, from_top = (low + high - room) / 2, high - 0.95 * room
    return scale, torch.where(zoom > 1.02, from_top, centred)
