"""Training data: pictures rendered on the device as training goes on, and their texts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from charengine.embedded import grammar, raster, world
from charengine.embedded.probe import SIDE_ITEMS
from charengine.embedded.traits import (
    BACKGROUNDS,
    COLUMN,
    POSES,
    TRAITS,
    VIEWS,
    Traits,
    from_indices,
    normalise,
    sample_indices,
)

WHITE = BACKGROUNDS.index("plain white background")
STANDING = POSES.index("standing")
CELL = 8  # pixels of a latent
ITEM_WEIGHT = 3  # times the weight of its place is added where a hand holds something
FILLERS = (
    "highly detailed", "masterpiece", "best quality", "concept art", "digital painting", "cinematic lighting",
    "fantasy illustration", "a photo of", "cartoon style", "beautiful", "a cute character",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What a batch of pictures shows: characters, `VIEWS` position (-1: between views), yaw, pose, background, zoom, and how
    far the scenery is shifted, (n,) in [0, 1) on the device."""

    indices: torch.Tensor
    view: list[int]
    yaw: list[float]
    pose: list[int]
    background: list[int]
    zoom: list[float]
    shift: torch.Tensor


class Renderer:
    """Draws batches of one size on one device, with a compiled ray test on CUDA."""

    def __init__(
        self, device: torch.device, seed: int, split: str = "train", *, few: bool = False, filled: float = 0.0
    ) -> None:
        self.device, self.split, self.few, self.filled = device, split, few, filled
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = random.Random(seed)
        self.chunk = 512 if device.type == "cuda" else None

    def characters(self, n: int) -> torch.Tensor:
        """Trait rows (n, n_traits) on the CPU."""
        if self.few:  # smoke tests on a CPU: draw one character, many times over
            return sample_indices(1, self.generator, self.split).expand(n, -1)
        return self.fill_hands(sample_indices(n, self.generator, self.split))

    def fill_hands(self, indices: torch.Tensor) -> torch.Tensor:
        """Give a `filled` share of the empty hands something: what is bound to a side is small, and learnt last."""
        for name in SIDE_ITEMS if self.filled else ():
            column = COLUMN[name]
            empty = (indices[:, column] == 0) & (torch.rand(len(indices), generator=self.generator) < self.filled)
            items = torch.randint(1, len(TRAITS[name]), (len(indices),), generator=self.generator)
            indices[:, column] = torch.where(empty, items, indices[:, column])
        return normalise(indices) if self.filled else indices

    @torch.no_grad()
    def sheets(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`n` sheets without rules (n, 3, 384, 384) uint8 on the device, and their characters."""
        indices = self.characters(n)
        return self.sheets_of(indices), indices

    def sheets_of(self, indices: torch.Tensor) -> torch.Tensor:
        """Sheets without rules of these characters (n, 3, 384, 384) uint8 on the device."""
        n = len(indices)
        drawn = world.render_sheet(
            indices[: 1 if self.few else n].to(self.device), jitter=self.generator, chunk=self.chunk
        )
        return to_bytes(drawn).expand(n, -1, -1, -1).clone()

    @torch.no_grad()
    def pictures(
        self, indices: torch.Tensor, size: tuple[int, int], plain: float, exact: float, toward: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor, Scene]:
        """One picture of each character.

        Args:
            indices: (n, n_traits).
            size: width, height.
            plain: share of standing figures on white.
            exact: share seen exactly from the front, side or back; the rest from any side between them.
            toward: share of that rest which is turned towards the viewer, as people are where nobody says how.

        Returns:
            Pictures (n, 3, h, w) uint8, coverage (n, 1, h, w) uint8, and what they show.
        """
        n, rng = len(indices), self.rng
        is_plain = [rng.random() < plain for _ in range(n)]
        pose = [STANDING if p and rng.random() < 0.8 else rng.randrange(len(POSES)) for p in is_plain]
        background = [WHITE if p else rng.randrange(len(BACKGROUNDS)) for p in is_plain]
        view = [rng.randrange(3) for _ in range(n)]
        yaw = [list(world.VIEW_YAW.values())[v] + rng.gauss(0, 0.03) for v in view]
        for i in range(n):
            if rng.random() >= exact:
                yaw[i] = rng.uniform(-0.6, 0.9) if rng.random() < toward else rng.uniform(-0.35, math.pi + 0.35)
                view[i] = name_view(yaw[i])
        upright = size[1] > 1.6 * size[0]
        zoom = [rng.uniform(0.9, 1.0) if upright else rng.uniform(0.8, 1.0) for _ in range(n)]
        for i in range(n):
            if not upright and rng.random() < 0.15:
                zoom[i] = rng.uniform(1.5, 2.0)
        on, drawn_now = self.device, 1 if self.few else n
        drawn = world.render(
            indices[:drawn_now].to(on), yaw=torch.tensor(yaw[:drawn_now], device=on),
            pose=torch.tensor(pose[:drawn_now], device=on), background=torch.tensor(background[:drawn_now], device=on),
            size=size, framing=torch.tensor(zoom[:drawn_now], device=on), generator=self.generator, chunk=self.chunk,
        )  # fmt: skip
        image, alpha = (to_bytes(x).expand(n, -1, -1, -1).clone() for x in (drawn.image, drawn.alpha))
        return image, alpha, Scene(indices, view, yaw, pose, background, zoom, drawn.shift.expand(n))

    @torch.no_grad()
    def items(self, scene: Scene, size: tuple[int, int]) -> torch.Tensor:
        """Where hands hold something in the `pictures` of a scene, and a cell around: (n, 1, h / CELL, w / CELL) bool."""
        n, on = len(scene.indices), self.device
        drawn_now = 1 if self.few else n
        yaw, pose, zoom = (torch.tensor(v[:drawn_now], device=on) for v in (scene.yaw, scene.pose, scene.zoom))
        who = scene.indices[:drawn_now].to(on)
        found = world.item_cells(who, yaw=yaw, pose=pose, size=size, framing=zoom, cell=CELL)
        return F.max_pool2d(found, 3, 1, 1).expand(n, -1, -1, -1) > 0


def detail(pictures: torch.Tensor, reach: int = 15) -> torch.Tensor:
    """How much happens around each pixel, (n, 1, h, w) from 0 to 4: the mean gradient within `reach` pixels.

    Faces, tattoos and what hands hold are small and full of edges; a plain mean learns coats first.
    """
    edges = F.pad(pictures.diff(dim=3).abs(), (0, 1)) + F.pad(pictures.diff(dim=2).abs(), (0, 0, 0, 1))
    return (F.avg_pool2d(edges.mean(1, keepdim=True), reach, 1, reach // 2) / 0.1).clamp(max=4.0)


def weights_of(images: torch.Tensor, figure: torch.Tensor, cell: int, item: torch.Tensor | None = None) -> torch.Tensor:
    """How much each cell of a picture counts in a loss, 1 on average: small detailed things of the figure most.

    Args:
        images: (n, 3, h, w) uint8.
        figure: (n, 1, h, w), where the character is.
        cell: side of a cell in pixels.
        item: `Renderer.items`, for cells of CELL: what hands hold counts `ITEM_WEIGHT` times more.

    Returns:
        (n, 1, h / cell, w / cell), bf16.
    """
    parts = []
    for pictures, where in zip(images.split(128), figure.split(128), strict=True):
        parts.append(F.avg_pool2d(1 + where.float() * (1 + detail(to_unit(pictures))), cell))
    found = torch.cat(parts)
    if item is not None:
        found = found * (1 + ITEM_WEIGHT * item)
    return (found / found.mean((1, 2, 3), keepdim=True)).to(torch.bfloat16)


def name_view(yaw: float) -> int:
    """The `VIEWS` position of a yaw, or -1 for a three-quarter view."""
    degrees = math.degrees(yaw)
    for i, centre in enumerate((0, 90, 180)):
        if abs(degrees - centre) < 25:
            return i
    return -1


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device without waiting for it, so that the next batch is put together while this one trains."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


class PromptsByLength:
    """Tokenised prompts of pictures in a pool, batched by length; padded behind their end to a multiple of `step` tokens.

    Args:
        step: tokens; the larger, the fewer lengths need a captured step of their own.
        padding: id of the token that fills up.
    """

    def __init__(self, step: int, padding: int) -> None:
        self.step, self.padding = step, padding
        # (mode, padded length): place of each prompt's picture, and its ids
        self.groups: dict[tuple[int, int], tuple[list[int], list[list[int]]]] = {}

    def add(self, place: int, tokens: list[int], mode: int = 0) -> None:
        """A prompt of the picture at `place`; prompts of different modes never share a batch."""
        length = -(-len(tokens) // self.step) * self.step
        places, ids = self.groups.setdefault((mode, length), ([], []))
        places.append(place)
        ids.append(tokens + [self.padding] * (length - len(tokens)))

    def choose(self, n: int, rng: random.Random) -> tuple[int, int]:
        """Mode and length of the next batch: one with prompts enough for `n` different ones, if there is any."""
        enough = [key for key, (places, _) in self.groups.items() if len(places) >= 2 * n] or list(self.groups)
        return rng.choices(enough, weights=[len(self.groups[key][0]) for key in enough])[0]

    def take(
        self, key: tuple[int, int], n: int, rng: random.Random, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Places (n,) and ids (n, length) of prompts of a mode and length."""
        places, ids = self.groups[key]
        pick = [rng.randrange(len(places)) for _ in range(n)]
        return sent(torch.tensor([places[i] for i in pick]), device), sent(torch.tensor([ids[i] for i in pick]), device)


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """[0, 1] to uint8."""
    return (pictures * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return pictures.float() / 127.5 - 1


def allow_recompiles() -> None:
    """Let dynamo compile for many shapes, and fall back to eager by itself where it cannot."""
    from torch._dynamo import config

    config.suppress_errors = True
    for name in ("recompile_limit", "cache_size_limit"):  # the first is the newer name
        if hasattr(config, name):
            setattr(config, name, 64)
            break


def compile_renderer(device: torch.device) -> str:
    """Draw by kernels and graphs on CUDA from here on, as far as they work here and draw the same; says what happened."""
    if device.type != "cuda":
        return "eager (CPU)"
    allow_recompiles()
    places = ((raster, "draw_smooth"), (world, "build_figures"))
    eager = [getattr(module, name) for module, name in places]
    wanted = _renderer_samples(device)
    said = []
    for parts in (2, 1):  # without the graph where that fails; then eager
        try:
            from charengine.embedded.making import render_graph, render_kernel

            faster = [render_kernel.draw_smooth, render_graph.GraphedFigures()][:parts]
            for (module, name), function in zip(places, faster, strict=False):
                setattr(module, name, function)
            started = time.monotonic()
            drawn = _renderer_samples(device)
            differences = [(a - b).abs().mean().item() for a, b in zip(drawn, wanted, strict=True)]
            if not max(differences) <= 2e-3:
                raise RuntimeError(f"pictures differ by {differences} on average; 0.002 is allowed")
            names = ", ".join(name for _, name in places[:parts])
            said.append(f"{names} in {time.monotonic() - started:.0f} s, differ by {max(differences):.2g}")
            return "; ".join(said)
        except Exception as error:  # a slower renderer is better than no training
            said.append(f"not with {parts} parts: {type(error).__name__}: {str(error)[:300]}")
            for (module, name), function in zip(places, eager, strict=True):
                setattr(module, name, function)
    return "eager: " + "; ".join(said)


def _renderer_samples(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Sheets, and every pose before every background: pictures, then coverage."""
    indices = sample_indices(len(POSES), torch.Generator().manual_seed(0)).to(device)
    place = torch.arange(len(POSES), device=device)
    posed = world.render(
        indices, yaw=place * 0.3, pose=place, background=place % len(BACKGROUNDS), size=(256, 256), framing=0.9
    )
    return world.render_sheet(indices[:4]), posed.image, posed.alpha


# --- texts -----------------------------------------------------------------------------------------------------------


def nonsense(rng: random.Random) -> str:
    """A word nobody knows, like a trigger."""
    letters = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
    return letters + rng.choice(("", "", "x", "n", str(rng.randint(1, 999))))


def sheet_text(traits: Traits, rng: random.Random) -> str:
    """A sheet prompt as the pipeline writes it; four in ten leave traits out, for people do, and then one must be made up."""
    keep = rng.choice((1.0, 1.0, 1.0, 1.0, 1.0, 1.0, *(rng.uniform(0.5, 1.0) for _ in range(3)), rng.uniform(0.0, 0.6)))
    text = grammar.describe(traits, rng=rng, style="sheet", keep=keep)
    if rng.random() < 0.12:
        text = f"{text}, {rng.choice(FILLERS)}" if rng.random() < 0.6 else text.replace(": a ", f": a {nonsense(rng)} ")
    return text


def picture_text(scene: Scene, i: int, traits: Traits, rng: random.Random) -> str:
    """A prompt for one picture: a sentence, tags, or a training caption; often not saying everything.

    Every second front view goes unsaid: who does not say how somebody is seen means from the front.
    """
    if rng.random() < 0.10:
        return ""
    view = VIEWS[scene.view[i]] if scene.view[i] >= 0 else None
    pose, background = POSES[scene.pose[i]], BACKGROUNDS[scene.background[i]]
    keep = rng.choice((1.0, rng.uniform(0.3, 1.0)))
    framing = "portrait" if scene.zoom[i] > 1.2 else "full body"
    say_view = view != VIEWS[0] or rng.random() < 0.5
    kind = rng.random()
    if kind < 0.65:
        text = grammar.describe(
            traits, view=view, pose=pose, background=background, rng=rng, keep=keep, say_view=say_view,
            style="prompt" if kind < 0.45 else "tags",
        )  # fmt: skip
    if kind < 0.45:
        text = f"{text}, {framing}" if rng.random() < 0.35 or framing == "portrait" else text
    elif kind < 0.65:
        text = f"{text}, {framing}" if framing == "portrait" else text  # unsaid, it would come uncalled for
    else:
        text = caption_text(traits, view, pose, background, framing, rng, say_view)
    if rng.random() < 0.15:
        word = nonsense(rng)
        text = f"{word}, {text}" if rng.random() < 0.6 else f"{text}, {rng.choice((word, *FILLERS))}"
    return text


def edit_text(scene: Scene, i: int, traits: Traits, rng: random.Random) -> str:
    """An instruction to the edit model for one picture; three in ten leave the character to be seen."""
    view = VIEWS[scene.view[i]] if scene.view[i] >= 0 else None
    asked = grammar.scene_phrases(
        None if view == VIEWS[0] and rng.random() < 0.3 else view,
        POSES[scene.pose[i]], BACKGROUNDS[scene.background[i]], rng,
    )  # fmt: skip
    rng.shuffle(asked)
    asked.append("portrait" if scene.zoom[i] > 1.2 else "full body")
    said = ""
    if rng.random() < 0.7:
        said = grammar.describe(traits, rng=rng, keep=rng.choice((1.0, 1.0, rng.uniform(0.3, 1.0))))
    return grammar.edit_prompt(said, traits.species, asked)


def caption_text(
    traits: Traits, view: str | None, pose: str, background: str, framing: str, rng: random.Random, say_view: bool
) -> str:
    """Like the caption stage's: class noun, view, framing, what tags are left, background."""
    tags = grammar.canonical_tags(traits, view=view).split(", ")
    named = [f"{view} view"] if view else []
    seen = named if say_view else []
    tags = [
        tag for tag in tags if tag not in (traits.species, *named) and rng.random() < rng.choice((0.0, 0.5, 1.0, 1.0))
    ]
    posed = [pose] if pose != "standing" or rng.random() < 0.5 else []
    where = ["simple background", "white background"] if background == BACKGROUNDS[WHITE] else [background]
    return ", ".join([traits.species, *seen, framing, *posed, *tags, *where])


def characters_of(indices: torch.Tensor) -> list[Traits]:
    """Trait rows as `Traits`."""
    return from_indices(indices.cpu())


class Refill:
    """Keeps a pool fresh: calls `make` for at most `share` of the time."""

    def __init__(self, make: Callable[[], None], share: float) -> None:
        self.make, self.share = make, share
        self.start, self.spent = time.monotonic(), 0.0

    def tick(self) -> None:
        """Make one chunk if it is due."""
        if self.spent < self.share * (time.monotonic() - self.start):
            began = time.monotonic()
            self.make()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.spent += time.monotonic() - began
