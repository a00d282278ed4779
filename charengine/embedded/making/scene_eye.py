"""Readers of what a character stands in: its pose, its scenery, and where the two are placed.

An eye reads who is seen. A picture model that learns from eyes alone gives up what they do not read: castle halls become
meadows, and everybody stands in the middle and looks at the viewer. These readers say whether pose and scenery are the
asked-for ones, and how far drawn pictures of one prompt differ in what no prompt says: how far the figure is turned, how
close it is, and which piece of the scenery is behind it. They judge nothing, and none is shipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from charengine.embedded import probe as source
from charengine.embedded.making.clock import Clock, Log, read_weights
from charengine.embedded.making.data import WHITE, Refill, Renderer, Scene
from charengine.embedded.making.judge import fit
from charengine.embedded.making.run import Run
from charengine.embedded.traits import BACKGROUNDS, POSES

SCENE_EYES = {"scene_eye": (40, 80, 144, 192), "other_scene_eye": (32, 96, 128, 224)}
PLACES = {"turned": 2, "close": 1, "shifted": 2, "shifted_far": 2}  # numbers of each; angles as sine and cosine
REPEATS = 7  # most scenery repeats itself so often within its shift
CLOSE = (0.9, 0.1)  # a zoom is read from here, in units of this
SIZES = ((256, 256), (256, 256), (128, 384))
FAINT = 0.1  # of the spread in the scenery where a place is seen best: below, it cannot be seen
HEADS = (len(POSES), len(BACKGROUNDS), sum(PLACES.values()))


@dataclass(frozen=True)
class Shown:
    """Rendered pictures (n, 3, h, w) uint8, poses and sceneries (n,), places (n, 7), and whether the place counts (n,)."""

    images: torch.Tensor
    poses: torch.Tensor
    backgrounds: torch.Tensor
    places: torch.Tensor
    placed: torch.Tensor


def places_of(scene: Scene) -> torch.Tensor:
    """The numbers of PLACES for each picture of a scene: (n, 7)."""
    yaw, zoom = (torch.tensor(v, device=scene.shift.device) for v in (scene.yaw, scene.zoom))
    once = 2 * math.pi * scene.shift
    close = (zoom - CLOSE[0]) / CLOSE[1]
    far = REPEATS * once
    return torch.stack([yaw.sin(), yaw.cos(), close, once.sin(), once.cos(), far.sin(), far.cos()], 1)


def shown(renderer: Renderer, n: int, size: tuple[int, int], *, exact: float, plain: float = 0.1) -> Shown:
    """Renders to learn from; `exact` and `plain` as `Renderer.pictures` takes them."""
    images, _, scene = renderer.pictures(renderer.characters(n), size, plain=plain, exact=exact, toward=0.75)
    poses, backgrounds = (torch.tensor(v, device=images.device) for v in (scene.pose, scene.background))
    placed = (torch.tensor(scene.zoom, device=images.device) < 1.2) & (backgrounds != WHITE)
    return Shown(images, poses, backgrounds, places_of(scene), placed)


def build_scene_eye(run: Run, name: str) -> source.Probe:
    """One reader of scenes, untrained."""
    return source.Probe((16, 16, 16, 16) if run.tiny else SCENE_EYES[name], HEADS)


def load_scene_eyes(run: Run) -> list[source.Probe]:
    """Those that were trained before, not to be changed."""
    made = [(name, build_scene_eye(run, name).to(run.device)) for name in SCENE_EYES]
    return [eye.eval().requires_grad_(False) for name, eye in made if read_weights(run.made, name, eye)]


def scene_loss(
    logits: list[torch.Tensor],
    poses: torch.Tensor,
    backgrounds: torch.Tensor,
    places: torch.Tensor,
    placed: torch.Tensor,
) -> torch.Tensor:
    """Cross entropies of pose and scenery, and the squared error of places where there is one."""
    wrong = (logits[2] - places).square().mean(1)
    where = (wrong * placed).sum() / placed.sum().clamp(min=1)
    return F.cross_entropy(logits[0], poses) + F.cross_entropy(logits[1], backgrounds) + 2 * where


def train_scene_eye(run: Run, minutes: float, name: str) -> None:
    """Train one for `minutes`."""
    device, log = run.device, Log(run.out, name)
    seed = run.seed + 16400 * (1 + list(SCENE_EYES).index(name))
    renderer = Renderer(device, seed, few=run.tiny, filled=0.25)
    generator = torch.Generator().manual_seed(seed + 1)
    chunk, room = run.scale(1024, 4), run.scale(24, 2)
    pools: dict[tuple[int, int], list[Shown]] = {size: [] for size in SIZES}

    def grow() -> None:
        size = SIZES[renderer.rng.randrange(len(SIZES))]
        pools[size] = [*pools[size], shown(renderer, chunk, size, exact=0.3)][-room:]

    fill = Clock(run.scale(20, 1) / 60 * min(1.0, minutes))
    while fill.progress < 1 or not all(pools.values()):
        grow()
    eye = build_scene_eye(run, name).to(device).train()
    clock, refill = Clock(minutes, max_steps=run.max_steps), Refill(grow, 0.25)

    def batch() -> tuple[torch.Tensor, ...]:
        part = renderer.rng.choice(pools[SIZES[renderer.rng.randrange(len(SIZES))]])
        pick = torch.randint(len(part.images), (run.scale(192, 2),), generator=generator).to(device)
        return part.images[pick], part.poses[pick], part.backgrounds[pick], part.places[pick], part.placed[pick]

    fit(run, log, name, eye, clock, 2e-3, batch, scene_loss, refill, generator)
    log.write(event="measured", **measured(run, eye))


@torch.no_grad()
def measured(run: Run, eye: source.Probe) -> dict[str, float]:
    """On held-out renders: poses and sceneries read right, and the mean squared error of each place."""
    test = shown(Renderer(run.device, 991, "heldout", few=run.tiny), run.scale(600, 4), (256, 256), exact=0.3)
    logits = [torch.cat(parts) for parts in zip(*(eye(x.float() / 255) for x in test.images.split(100)), strict=True)]
    wrong = ((logits[2] - test.places).square() * test.placed[:, None]).sum(0) / test.placed.sum().clamp(min=1)
    each = {name: part.sum().item() for name, part in zip(PLACES, wrong.split(list(PLACES.values())), strict=True)}
    right = [
        (found.argmax(1) == true).float().mean().item()
        for found, true in zip(logits, (test.poses, test.backgrounds), strict=False)
    ]
    return {"poses": right[0], "backgrounds": right[1], **each}


@torch.no_grad()
def spreads(run: Run, eye: source.Probe) -> torch.Tensor:
    """How far two renders of one scenery are apart in each place, as the eye reads them: (places, sceneries).

    The mean squared distance of renders that are turned as people are where nobody says how. 0 where a place can hardly be
    read, as a shift in a scenery that hides it, and on white.
    """
    renderer = Renderer(run.device, run.seed + 66, few=run.tiny)
    generator = torch.Generator().manual_seed(run.seed + 67)
    found, sceneries = [], []
    for _ in range(run.scale(12, 2)):
        part = shown(renderer, run.scale(256, 8), (256, 256), exact=0.0, plain=0.0)
        toward = part.placed & (part.places[:, 0].abs() < math.sin(0.95)) & (part.places[:, 1] > math.cos(0.95))
        seen = eye(source.augment(part.images.float() / 255, generator))[2].float()
        found.append(seen[toward])
        sceneries.append(part.backgrounds[toward])
    seen, where = torch.cat(found), torch.cat(sceneries)
    apart = torch.zeros(len(PLACES), len(BACKGROUNDS), device=run.device)
    for scenery in range(len(BACKGROUNDS)):
        there = seen[where == scenery]
        if scenery != WHITE and len(there) > 1:
            parts = there.var(0).split(list(PLACES.values()))
            apart[:, scenery] = torch.stack([2 * part.sum() for part in parts])
    return apart * (apart > FAINT * apart.amax(1, keepdim=True))


def alike(places: torch.Tensor, backgrounds: torch.Tensor, free: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
    """How much less pictures of one prompt differ from each other than renders do, 0 to 1, mean of the places.

    Each scenery for itself: where all cities are one city, deserts that differ more than renders do make up for nothing.

    Args:
        places: what is read in pictures (n, 7), two of each prompt beside each other.
        backgrounds: (n,), the same for both.
        free: (n,) bool, whether the prompt leaves open how far the figure is turned.
        apart: `spreads`.
    """
    first, second = places.float().unflatten(0, (-1, 2)).unbind(1)
    parts = (first - second).square().split(list(PLACES.values()), 1)
    total = places.new_zeros((), dtype=torch.float)
    scenery = (backgrounds[::2, None] == torch.arange(len(BACKGROUNDS), device=places.device)).float()
    for k, (name, part) in enumerate(zip(PLACES, parts, strict=True)):
        wanted = apart[k][backgrounds[::2]]
        counts = ((wanted > 0) & (free[::2] if name == "turned" else torch.ones_like(free[::2]))).float()
        there = counts @ scenery
        share = (counts * part.sum(1) / wanted.clamp(min=1e-6)) @ scenery / there.clamp(min=1)
        total = total + (there * (1 - share).clamp(min=0)).sum() / there.sum().clamp(min=1)
    return total / len(PLACES)
