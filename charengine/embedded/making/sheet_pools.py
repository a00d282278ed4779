"""What the sheet model is trained on: rendered sheets with their prompts, and pictures with their tags."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.nn import functional as F

from charengine.embedded import grammar
from charengine.embedded.captioning import CAPTION_PROMPT
from charengine.embedded.making.data import PromptsByLength, Renderer, characters_of, sent, sheet_text, weights_of
from charengine.embedded.making.run import Run
from charengine.embedded.making.sheet_model import ANSWER, Reader
from charengine.embedded.making.still import normalised
from charengine.embedded.making.vae import Autoencoder
from charengine.embedded.shape import SHEET_SIZE
from charengine.embedded.traits import BACKGROUNDS, POSES, TRAITS, VIEWS
from charengine.figures.template import template

CAPTION_SIZES = {(128, 384): (140, 392), (192, 256): (224, 280), (256, 256): (252, 252)}  # rendered: what the VL reads
LENGTH_STEP = 16  # sheet prompts are padded to a multiple of this many tokens
LATENTS, VISION = 0, 1  # how the template conditions: as VAE latents too, or through the VL's eyes alone


class SheetPool:
    """Latents of rendered sheets with tokenised prompts, batched by prompt length.

    Prompts are padded behind their end to a multiple of `LENGTH_STEP`, so that few lengths need a graph; no padding at
    all, as the pipeline has it, is one of the cases the denoiser sees.
    """

    def __init__(self, run: Run, reader: Reader, vae: Autoencoder, capacity: int, chunk: int) -> None:
        self.renderer = Renderer(run.device, run.seed + 11, few=run.tiny, filled=0.6)
        self.reader, self.vae, self.capacity, self.chunk = reader, vae, capacity, chunk
        pixels = torch.from_numpy(np.array(template(SHEET_SIZE, SHEET_SIZE))).permute(2, 0, 1).to(run.device)
        self.rules = (pixels < 128).all(0)
        self.blank = vae.to_latents(pixels[None])
        side = SHEET_SIZE // 8
        channels = self.blank.shape[1]
        self.latents = torch.empty(capacity + chunk, channels, side, side, dtype=torch.bfloat16, device=run.device)
        self.weights = torch.empty(capacity + chunk, 1, side // 2, side // 2, dtype=torch.bfloat16, device=run.device)
        self.traits = torch.empty(capacity + chunk, len(TRAITS), dtype=torch.long, device=run.device)
        self.prompts = PromptsByLength(LENGTH_STEP, reader.padding)
        self.count = 0

    def make(self) -> None:
        """Render one chunk until the pool is full; one sheet in eight has the template's rules."""
        if self.count >= self.capacity:
            return
        pictures, indices = self.renderer.sheets(self.chunk)
        modes = [LATENTS if i % 8 == 7 else VISION for i in range(self.chunk)]
        ruled = torch.tensor([m == LATENTS for m in modes], device=pictures.device)
        figure = pictures.amin(1, keepdim=True) < 250
        pictures = pictures.masked_fill(ruled[:, None, None, None] & self.rules, 0)
        end = self.count + self.chunk
        self.weights[self.count : end] = weights_of(pictures, figure, 16)
        self.latents[self.count : end] = self.vae.to_latents(pictures)
        self.traits[self.count : end] = indices.to(self.traits.device)
        characters, rng = characters_of(indices), self.renderer.rng
        for _ in range(3):
            for i, tokens in enumerate(self.reader.tokens([sheet_text(c, rng) for c in characters])):
                self.prompts.add(self.count + i, tokens, modes[i])
        self.count = end

    def batch(self, n: int, rng: random.Random) -> tuple[int, tuple[torch.Tensor, ...]]:
        """A mode; and latents (n, 16, 48, 48), weights (n, 1, 24, 24), ids (n, tokens), traits (n, n_traits) of one length."""
        mode, length = self.prompts.choose(n, rng)
        n = n if mode == VISION else max(1, n // 2)
        at, said = self.prompts.take((mode, length), n, rng, self.blank.device)
        return mode, (self.latents[at], self.weights[at], said, self.traits[at])


class CaptionPool:
    """Rendered pictures with their canonical tags, by size."""

    def __init__(self, run: Run, reader: Reader, vae: Autoencoder, capacity: int, chunk: int) -> None:
        self.renderer = Renderer(run.device, run.seed + 12, few=run.tiny)
        self.reader, self.vae, self.capacity, self.chunk = reader, vae, capacity, chunk
        self.images: dict[tuple[int, int], torch.Tensor] = {}
        self.answers: dict[tuple[int, int], list[list[int]]] = {}
        self.next = 0
        pad = reader.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.question = reader.tokenizer(CAPTION_PROMPT)["input_ids"]
        self.before = self.question.index(pad)
        self.pad = pad
        for size in CAPTION_SIZES:
            self.make(size)

    def make(self, size: tuple[int, int] | None = None) -> None:
        """Render one chunk; half of it goes through the VAE, for that is how drawn sheets look."""
        cycle = [(128, 384)] * 4 + [(192, 256), (256, 256)]
        size = size or cycle[self.next % len(cycle)]
        self.next += 1
        indices = self.renderer.characters(self.chunk)
        plain = 0.85 if size != (256, 256) else 0.3
        images, _, scene = self.renderer.pictures(indices, size, plain=plain, exact=1.0)
        half = self.chunk // 2
        images[:half] = (self.vae.to_pictures(self.vae.to_latents(images[:half])) * 255 + 0.5).to(torch.uint8)
        texts = [
            grammar.canonical_tags(
                traits, view=VIEWS[scene.view[i]], pose=POSES[scene.pose[i]], background=BACKGROUNDS[scene.background[i]]
            ) + "<|im_end|>"
            for i, traits in enumerate(characters_of(indices))
        ]  # fmt: skip
        answers = self.reader.tokenizer(texts)["input_ids"]
        if size in self.images:
            images = torch.cat([self.images[size], images])[-self.capacity :]
            answers = (self.answers[size] + answers)[-self.capacity :]
        self.images[size], self.answers[size] = images, answers

    def batch(self, n: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures as the VL reads them (n, 3, h, w), ids and labels (n, tokens)."""
        size = rng.choices(list(self.images), weights=(0.75, 0.12, 0.13))[0]
        pick = [rng.randrange(len(self.answers[size])) for _ in range(n)]
        device = self.images[size].device
        pixels = self.images[size][sent(torch.tensor(pick), device)].float()
        pixels = jittered(pixels, rng)
        width, height = CAPTION_SIZES[size]
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 255)
        count = (width // 28) * (height // 28)
        question = [*self.question[: self.before], *([self.pad] * count), *self.question[self.before + 1 :]]
        answers = [self.answers[size][i] for i in pick]
        ids = torch.full((n, len(question) + ANSWER), self.reader.padding)
        labels = torch.full_like(ids, -100)
        ids[:, : len(question)] = torch.tensor(question)
        for i, answer in enumerate(answers):
            ids[i, len(question) : len(question) + len(answer)] = torch.tensor(answer)
            labels[i, len(question) : len(question) + len(answer)] = torch.tensor(answer)
        return normalised(pixels), sent(ids, device), sent(labels, device)


def jittered(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Shift and shrink a little on white, as crops differ from renders."""
    if rng.random() < 0.3:
        return pixels
    n, device = len(pixels), pixels.device
    zoom = 1 + torch.rand(n, device=device) * 0.15 * (rng.random() < 0.7) - 0.04 * rng.random()
    move = (torch.rand(n, 2, device=device) - 0.5) * 0.08
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom, zoom, move
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return 255 - F.grid_sample(255 - pixels, grid, align_corners=False)
