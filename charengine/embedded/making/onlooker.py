"""Trains the onlooker on pictures composed of rendered figures and scenery: nobody, one figure, a part of one, or several.

python -m charengine.embedded.making.onlooker [--steps 3000] [--out FILE]      about fifteen minutes on one CPU core
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from charengine.embedded import world
from charengine.embedded.onlooker import KINDS, SIDE, OnlookerNet
from charengine.embedded.packaged import ONLOOKER
from charengine.embedded.scenery import draw_background
from charengine.embedded.traits import BACKGROUNDS, POSES, sample_indices

RENDERED = 192  # pixels of a rendered figure
SHARES = (0.2, 0.25, 0.15, 0.15, 0.25)  # of `KINDS`
HEAD = 0.24  # of a figure's height, about


@dataclass(frozen=True)
class Figures:
    """Rendered figures (4, h, w) in [0, 1], premultiplied: whole ones, and those seen close."""

    whole: list[torch.Tensor]
    half: list[torch.Tensor]
    face: list[torch.Tensor]


def figures(n: int, split: str, seed: int) -> Figures:
    """Figures of `n` characters, and of a fifth as many from close by."""
    return Figures(
        _rendered(n, split, seed, (0.85, 1.0)),
        _rendered(max(4, n // 5), split, seed + 1, (1.4, 2.0)),
        _rendered(max(4, n // 3), split, seed + 2, (2.9, 4.5)),
    )


def batch(made: Figures, n: int, rng: random.Random, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, SIDE, SIDE) in [0, 1] and their kinds (n,)."""
    kinds = rng.choices(range(len(KINDS)), SHARES, k=n)
    scenes = [0 if rng.random() < 0.35 else rng.randrange(1, len(BACKGROUNDS)) for _ in kinds]
    shift, ground = torch.rand(n, generator=generator), 0.75 + 0.22 * torch.rand(n, generator=generator)
    grounds = draw_background(torch.tensor(scenes), (SIDE, SIDE), shift, ground)
    pictures = []
    for kind, scene, under in zip(kinds, scenes, grounds, strict=True):
        picture = _plain(rng, generator) if scene == 0 else under
        if rng.random() < 0.25:
            picture = _with_things(picture, rng)
        for figure in _standing(KINDS[kind], made, rng):
            picture = picture * (1 - figure[3:]) + figure[:3]
        pictures.append(picture)
    return _worn(torch.stack(pictures), rng, generator), torch.tensor(kinds)


def train(steps: int, seed: int = 5, characters: int = 90) -> OnlookerNet:
    """A net after `steps` steps of 48 pictures."""
    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    made, net = figures(characters, "train", seed), OnlookerNet().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        pictures, kinds = batch(made, 48, rng, generator)
        loss = F.cross_entropy(net(pictures), kinds, label_smoothing=0.03)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), flush=True)
    return net.eval()


@torch.no_grad()
def accuracies(net: OnlookerNet, made: Figures, n: int = 1200, seed: int = 77) -> dict[str, dict[str, float]]:
    """Of composed pictures of each kind, the share taken for each kind."""
    pictures, kinds = batch(made, n, random.Random(seed), torch.Generator().manual_seed(seed))
    said = torch.cat([net(part).argmax(-1) for part in pictures.split(100)])
    return {
        name: {other: round((said[kinds == k] == j).float().mean().item(), 3) for j, other in enumerate(KINDS)}
        for k, name in enumerate(KINDS)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure on held-out characters, write the weights as half floats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=ONLOOKER)
    chosen = parser.parse_args(arguments)
    from safetensors.torch import save_file

    net = train(chosen.steps)
    print(json.dumps(accuracies(net, figures(24, "heldout", 900))))
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}, chosen.out
    )


def _rendered(n: int, split: str, seed: int, zooms: tuple[float, float]) -> list[torch.Tensor]:
    rng = random.Random(seed)
    indices = sample_indices(n, torch.Generator().manual_seed(seed), split)
    found = []
    for row in indices.split(1):
        yaw = rng.uniform(-0.7, 0.9) if rng.random() < 0.75 else rng.uniform(-0.3, 3.4)
        drawn = world.render(
            row, yaw=torch.tensor([yaw]), pose=torch.tensor([rng.randrange(len(POSES))]),
            background=torch.zeros(1, dtype=torch.long), size=(RENDERED, RENDERED), framing=rng.uniform(*zooms),
        )  # fmt: skip
        found.append(torch.cat([drawn.image - (1 - drawn.alpha), drawn.alpha], 1)[0].clamp(0, 1))
    return found


def _standing(kind: str, made: Figures, rng: random.Random) -> list[torch.Tensor]:
    """Figures (4, SIDE, SIDE) at their places."""
    if kind == "nobody":
        return []
    if kind == "full body":
        size = rng.uniform(0.6, 0.97)
        return [
            _placed(rng.choice(made.whole), size, 0.5 + rng.uniform(-0.25, 0.25), rng.uniform(0.01, 0.99 - size), rng)
        ]
    if kind == "several":
        return _group(made, rng)
    close = made.half if kind == "upper body" else made.face
    if rng.random() < 0.4:  # as it was rendered
        return [_placed(rng.choice(close), 1.0, 0.5 + rng.uniform(-0.1, 0.1), 0.0, rng, whole=False)]
    size = rng.uniform(1.5, 2.2) if kind == "upper body" else rng.uniform(0.7, 0.95) / HEAD
    return [
        _placed(
            rng.choice(made.whole), size, 0.5 + rng.uniform(-0.12, 0.12), rng.uniform(0.02, 0.12), rng, by_head=True
        )
    ]


def _group(made: Figures, rng: random.Random) -> list[torch.Tensor]:
    """Two to four of different characters, or three views of one."""
    n = rng.choice((2, 2, 2, 3, 3, 4))
    one = rng.choice(made.whole)
    faces = rng.random() < 0.12
    found = []
    for k in range(n):
        figure = one if rng.random() < 0.3 else rng.choice(made.whole)
        x = (k + 0.5) / n + rng.uniform(-0.08, 0.08)
        if faces:
            found.append(_placed(figure, 0.4 / HEAD, x, rng.uniform(0.1, 0.3), rng, by_head=True))
            continue
        size = rng.uniform(0.45, 0.92 if n < 4 else 0.7)
        found.append(_placed(figure, size, x, rng.uniform(0.02, 0.98 - size), rng))
    return found


def _placed(
    figure: torch.Tensor,
    size: float,
    x: float,
    top: float,
    rng: random.Random,
    *,
    whole: bool = True,
    by_head: bool = False,
) -> torch.Tensor:
    """A figure on an empty square: `size` high, its middle (or head's middle) at `x`, its top at `top`, in sides of the square."""
    if rng.random() < 0.5:
        figure = figure.flip(-1)
    if whole:
        rows, columns = figure[3].amax(1).nonzero().flatten(), figure[3].amax(0).nonzero().flatten()
        figure = figure[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height = max(6, round(size * SIDE))
    width = max(4, round(figure.shape[2] * height / figure.shape[1]))
    small = F.interpolate(figure[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    middle = width / 2
    if by_head:
        weight = small[3, : max(1, round(height * HEAD))].sum(0)
        middle = float((weight * torch.arange(width)).sum() / weight.sum().clamp(min=1e-3))
    out = torch.zeros(4, SIDE, SIDE)
    left, up = round(x * SIDE - middle), round(top * SIDE)
    x0, y0, x1, y1 = max(0, left), max(0, up), min(SIDE, left + width), min(SIDE, up + height)
    if x1 > x0 and y1 > y0:
        out[:, y0:y1, x0:x1] = small[:, y0 - up : y1 - up, x0 - left : x1 - left]
    return out


def _plain(rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    """White, one colour, or a soft gradient between two."""
    if rng.random() < 0.5:
        return torch.ones(3, SIDE, SIDE)
    top, bottom = torch.rand(2, 3, 1, 1, generator=generator)
    fade = torch.linspace(0, 1, SIDE)[None, :, None] if rng.random() < 0.5 else torch.zeros(1, 1, 1)
    ground: torch.Tensor = (top * (1 - fade) + bottom * fade).expand(3, SIDE, SIDE).clone()
    return ground


def _with_things(picture: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The picture with discs and boxes that are nobody."""
    line = torch.arange(SIDE) / SIDE
    for _ in range(rng.randint(1, 3)):
        x, y, w, h = rng.random(), rng.random(), rng.uniform(0.04, 0.3), rng.uniform(0.04, 0.3)
        across, down = (line - x).abs()[None], (line - y).abs()[:, None]
        inside = (across < w) & (down < h) if rng.random() < 0.5 else (across / w) ** 2 + (down / h) ** 2 < 1
        colour = torch.tensor([rng.random() for _ in range(3)])[:, None, None]
        picture = torch.where(inside[None], colour, picture)
    return picture


def _worn(pictures: torch.Tensor, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    """Blurred, tinted and noisy, as drawn pictures and photographs are."""
    n = len(pictures)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pick = torch.rand(n, 1, 1, 1, generator=generator)
    pictures = torch.where(pick < 0.4, soft, pictures)
    tint = 0.12 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    contrast = 1 + 0.3 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5)
    noise = 0.04 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(pictures.shape, generator=generator)
    return ((pictures - 0.5) * contrast + 0.5 + tint + noise).clamp(0, 1)


if __name__ == "__main__":
    main()
