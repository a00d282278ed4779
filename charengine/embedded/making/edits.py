"""Training data of the edit model beyond sheets: a picture of a character, and what is asked to be made of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from charengine.embedded import grammar, world
from charengine.embedded.making.data import (
    PromptsByLength,
    Renderer,
    characters_of,
    edit_text,
    sheet_text,
    to_bytes,
    weights_of,
)
from charengine.embedded.making.still import normalised
from charengine.embedded.making.vae import Autoencoder
from charengine.embedded.shape import EMBEDDED_CONDITION_AREA, PICTURE_SIZE, SHEET_SIZE, VIEW_SIZE
from charengine.embedded.traits import TRAITS
from charengine.models.qwen_edit import dimensions

if TYPE_CHECKING:
    from charengine.embedded.making.run import Run
    from charengine.embedded.making.sheet_model import Reader

SHEET = (SHEET_SIZE, SHEET_SIZE)
LENGTH_STEP = 32  # tokens: few lengths, each of which is a captured step
Size = tuple[int, int]


@dataclass(frozen=True)
class Edit:
    """One kind of edit.

    Attributes:
        source: size of the picture that is shown.
        target: size of what is asked for.
        share: of the edits.
        batch: pictures a step.
    """

    source: Size
    target: Size
    share: float
    batch: int


EDITS = {
    "view to picture": Edit(VIEW_SIZE, PICTURE_SIZE, 0.6, 144),
    "view to sheet": Edit(VIEW_SIZE, SHEET, 0.15, 72),
    "picture to sheet": Edit(PICTURE_SIZE, SHEET, 0.25, 64),
}


@dataclass
class _Pool:
    """Samples of one kind, as they lie on the device."""

    target: torch.Tensor
    weight: torch.Tensor
    source: torch.Tensor
    eye: torch.Tensor
    traits: torch.Tensor
    prompts: PromptsByLength
    count: int = 0


class EditPool:
    """Latents of pictures before and after, with tokenised instructions, batched by kind and prompt length."""

    def __init__(self, run: Run, reader: Reader, vae: Autoencoder, capacity: int, chunk: int) -> None:
        self.renderer = Renderer(run.device, run.seed + 13, few=run.tiny, filled=0.5)
        self.reader, self.vae, self.capacity, self.chunk = reader, vae, capacity, chunk
        self.pools = {name: self._empty(edit, run.device) for name, edit in EDITS.items()}

    @property
    def count(self) -> int:
        """Samples of all kinds."""
        return sum(pool.count for pool in self.pools.values())

    def make(self) -> None:
        """Render one chunk of the kind that is furthest behind its share."""
        name = min(EDITS, key=lambda name: self.pools[name].count / EDITS[name].share)
        edit, pool = EDITS[name], self.pools[name]
        if pool.count + self.chunk > self.capacity:
            return
        indices = self.renderer.characters(self.chunk)
        sources = self.sources(edit, indices)
        pictures, figure, texts = self.targets(edit, indices)
        place = slice(pool.count, pool.count + self.chunk)
        pool.target[place] = self.vae.to_latents(pictures)
        pool.weight[place] = weights_of(pictures, figure, 16)
        pool.source[place] = self.vae.to_latents(sources)
        pool.eye[place] = looked_at(sources)
        pool.traits[place] = indices.to(pool.traits.device)
        for i, tokens in enumerate(self.reader.tokens(texts, seen_tokens(edit.source))):
            pool.prompts.add(pool.count + i, tokens)
        pool.count += self.chunk

    def batch(self, rng: random.Random, tiny: bool) -> tuple[str, tuple[torch.Tensor, ...]]:
        """A kind; and latents, weights, ids, traits, source latents, what the VL sees, of one prompt length."""
        name = rng.choices(list(EDITS), weights=[edit.share for edit in EDITS.values()])[0]
        pool, n = self.pools[name], 2 if tiny else EDITS[name].batch
        at, said = pool.prompts.take(pool.prompts.choose(n, rng), n, rng, pool.target.device)
        # normalised here: a captured step may not copy from the host
        return name, (
            pool.target[at],
            pool.weight[at],
            said,
            pool.traits[at],
            pool.source[at],
            normalised(pool.eye[at]),
        )

    def sources(self, edit: Edit, indices: torch.Tensor) -> torch.Tensor:
        """What is shown; half of it as the VAE draws it, for sheets are drawn."""
        renderer = self.renderer
        if edit.source == VIEW_SIZE:
            pictures = views(renderer, indices, [renderer.rng.choices(range(3), (3, 1, 1))[0] for _ in indices])
        else:
            pictures, _, _ = renderer.pictures(indices, edit.source, plain=0.3, exact=0.6, toward=0.85)
        half = len(pictures) // 2
        drawn = self.vae.to_pictures(self.vae.to_latents(pictures[:half]))
        return torch.cat([to_bytes(drawn), pictures[half:]])

    def targets(self, edit: Edit, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """What is asked for (n, 3, h, w) uint8, where its figure is, and the instructions."""
        renderer, characters, rng = self.renderer, characters_of(indices), self.renderer.rng
        if edit.target == SHEET:
            pictures = renderer.sheets_of(indices)
            texts = [sheet_text(c, rng) if rng.random() < 0.7 else bare_sheet_text(c.species) for c in characters]
            return pictures, pictures.amin(1, keepdim=True) < 250, texts
        pictures, alpha, scene = renderer.pictures(indices, edit.target, plain=0.3, exact=0.7, toward=0.85)
        return pictures, alpha > 25, [edit_text(scene, i, c, rng) for i, c in enumerate(characters)]

    def _empty(self, edit: Edit, device: torch.device) -> _Pool:
        room, (w, h), (sw, sh) = self.capacity, edit.target, edit.source
        eye = eye_size(edit.source)

        def half(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=device)

        return _Pool(
            target=half(room, 16, h // 8, w // 8),
            weight=half(room, 1, h // 16, w // 16),
            source=half(room, 16, sh // 8, sw // 8),
            eye=torch.empty(room, 3, eye[1], eye[0], dtype=torch.uint8, device=device),
            traits=torch.empty(room, len(TRAITS), dtype=torch.long, device=device),
            prompts=PromptsByLength(LENGTH_STEP, self.reader.padding),
        )


def bare_sheet_text(species: str) -> str:
    """A sheet prompt that leaves the character to be seen."""
    return grammar.sheet_prompt("", species).rstrip(": ,")


def views(renderer: Renderer, indices: torch.Tensor, which: list[int]) -> torch.Tensor:
    """One view of each character as cut from a sheet (n, 3, 384, 128) uint8; `which` are positions in `traits.VIEWS`."""
    n, on, rng = len(indices), renderer.device, renderer.rng
    yaw = torch.tensor([list(world.VIEW_YAW.values())[k] + rng.gauss(0, 0.03) for k in which], device=on)
    zoom = torch.tensor([rng.uniform(0.9, 1.0) for _ in which], device=on)
    zero = torch.zeros(n, dtype=torch.long, device=on)
    return to_bytes(
        world.render(
            indices.to(on), yaw=yaw, pose=zero, background=zero, size=VIEW_SIZE, framing=zoom, chunk=renderer.chunk
        ).image
    )


def eye_size(size: Size) -> Size:
    """What becomes of a picture before the VL sees it: about the condition area, then multiples of 28 (Qwen2-VL)."""
    width, height = dimensions(EMBEDDED_CONDITION_AREA, size[0] / size[1])
    return round(width / 28) * 28, round(height / 28) * 28


def seen_tokens(size: Size) -> int:
    """Tokens that the VL makes of a picture of this size."""
    width, height = eye_size(size)
    return width * height // 28**2


def looked_at(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (n, 3, h, w) uint8 as small as the VL sees them, resized in the pipeline's two steps."""
    size = (pictures.shape[-1], pictures.shape[-2])
    width, height = dimensions(EMBEDDED_CONDITION_AREA, size[0] / size[1])
    small = pictures.float()
    for w, h in ((width, height), eye_size(size)):
        small = F.interpolate(small, (h, w), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    return small.round().to(torch.uint8)
