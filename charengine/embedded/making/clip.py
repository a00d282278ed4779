"""Trains the scoring model: pictures against texts, and pictures of one character against each other."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch.nn import functional as F

from charengine.embedded.making.clock import Average, Clock, Log, decayed, finish, read_weights, write_weights
from charengine.embedded.making.data import Refill, Renderer, Scene, characters_of, picture_text
from charengine.embedded.making.family import CLIP_SIZE, build_clip
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.making.run import Run
from charengine.embedded.making.still import normalised

SIZES = ((128, 384), (256, 256))


def letterboxed(pixels: torch.Tensor) -> torch.Tensor:
    """Pad to a centred square with white, resize to the model's side: (n, 3, h, w) 0-255 to (n, 3, 192, 192)."""
    _, _, h, w = pixels.shape
    side = max(h, w)
    left, top = (side - w) // 2, (side - h) // 2
    square = F.pad(pixels, (left, side - w - left, top, side - h - top), value=255.0)
    return F.interpolate(square, (CLIP_SIZE, CLIP_SIZE), mode="bilinear", antialias=True, align_corners=False)


class PairPool:
    """Two pictures of each character, differing in side, pose and background, and two texts of each picture."""

    def __init__(self, run: Run, tokenizer: Any, capacity: int, chunk: int) -> None:
        self.renderer = Renderer(run.device, run.seed + 31, few=run.tiny)
        self.tokenizer, self.capacity, self.chunk = tokenizer, capacity, chunk
        self.images: list[torch.Tensor] = [torch.empty(0)] * 2
        self.alphas: list[torch.Tensor] = [torch.empty(0)] * 2
        self.ids: list[torch.Tensor] = [torch.empty(0)] * 2
        self.make()

    def make(self) -> None:
        """Render one chunk of characters, twice."""
        indices = self.renderer.characters(self.chunk)
        for k, size in enumerate(SIZES):
            images, alpha, scene = self.renderer.pictures(indices, size, plain=(0.7, 0.1)[k], exact=0.5)
            small = letterboxed(images.float()).round().to(torch.uint8)
            mask = 255 - letterboxed((255 - alpha.float()).expand(-1, 3, -1, -1))[:, :1]
            ids = self.write(scene)
            if len(self.images[k]):
                small = torch.cat([self.images[k], small])[-self.capacity :]
                mask = torch.cat([self.alphas[k], mask.to(torch.uint8)])[-self.capacity :]
                ids = torch.cat([self.ids[k], ids])[-self.capacity :]
            self.images[k], self.alphas[k], self.ids[k] = small, mask.to(torch.uint8), ids

    def write(self, scene: Scene) -> torch.Tensor:
        """Ids (n, 2, 77) on the device."""
        rng, characters = self.renderer.rng, characters_of(scene.indices)
        texts = []
        for _ in range(2):
            for i, traits in enumerate(characters):
                text = ""
                while not text:
                    text = picture_text(scene, i, traits, rng)
                texts.append(text)
        found = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        ids: torch.Tensor = found["input_ids"]
        return ids.reshape(2, len(characters), 77).transpose(0, 1).to(self.renderer.device)

    def batch(self, n: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Whole pictures with their ids, and two pictures each of the same characters for identity."""
        pool = self.images[0]
        pick = torch.randperm(len(pool), device=pool.device)[:n]
        k = rng.randrange(2)
        which = rng.randrange(2)
        whole = self.images[k][pick].float()
        pair = [self.images[j][pick].float() for j in (0, 1)]
        for j in (0, 1):  # as the embedder sees figure crops: background masked to white or grey, sometimes not
            cut = (self.alphas[j][pick].float() / 255) > 0.3
            shade = torch.where(torch.rand(len(pick), 1, 1, 1, device=pool.device) < 0.6, 255.0, 128.0)
            masked = torch.where(cut, pair[j], shade)
            keep = torch.rand(len(pick), 1, 1, 1, device=pool.device) < 0.25
            pair[j] = torch.where(keep, pair[j], masked)
        return whole, self.ids[k][pick, which], pair[0], pair[1]


def shaken(pixels: torch.Tensor) -> torch.Tensor:
    """Shift, zoom, brightness and noise, so that the embedding does not lean on them."""
    n, device = len(pixels), pixels.device
    zoom = 1 + (torch.rand(n, device=device) - 0.6) * 0.5
    move = (torch.rand(n, 2, device=device) - 0.5) * 0.2
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom, zoom, move
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = 255 - F.grid_sample(255 - pixels, grid, align_corners=False)
    light = 1 + (torch.rand(n, 1, 1, 1, device=device) - 0.5) * 0.1
    return (moved * light + torch.randn_like(moved) * 4 * torch.rand(n, 1, 1, 1, device=device)).clamp(0, 255)


def contrast(one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Symmetric InfoNCE of unit vectors."""
    logits = scale * one @ other.T
    target = torch.arange(len(one), device=one.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(run: Run, minutes: float) -> None:
    """Train the scoring model for `minutes`."""
    device, log = run.device, Log(run.out, "clip")
    built, tokenizer, _ = build_clip(run.sizes)
    model: Any = built.to(device)
    resumed = read_weights(run.sources, "clip", model)
    average = Average({"clip": model}, 0.998)
    clock = Clock(minutes, max_steps=run.max_steps)
    pool = PairPool(run, tokenizer, capacity=run.scale(30000, 16), chunk=run.scale(256, 8))
    fill = Clock(run.scale(200, 1) / 600 * min(1.0, minutes / 3))
    while fill.progress < 1 or len(pool.images[0]) < run.scale(1000, 8):
        pool.make()
    refill = Refill(pool.make, 0.3)
    optimiser = GraphedOptimiser(decayed(model, rate=1e-3, decay=0.1), clock)
    identity_scale = math.exp(2.6)
    rng = random.Random(run.seed + 7)
    batch = run.scale(512, 4)

    def step(pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n = len(ids)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            said = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        seen, said = F.normalize(seen.float(), dim=-1), F.normalize(said.float(), dim=-1)
        texts = contrast(seen[:n], said, model.logit_scale.exp().clamp(max=100))
        identity = contrast(seen[n : 2 * n], seen[2 * n :], identity_scale)
        (texts + 0.7 * identity).backward()
        return texts.detach(), identity.detach()

    train_step = GraphedStep(step, device)
    log.write(event="start", resumed=resumed, parameters=sum(p.numel() for p in model.parameters()))
    while clock.progress < 1:
        whole, ids, one, other = pool.batch(batch, rng)
        pixels = normalised(shaken(torch.cat([whole, one, other])))
        texts, identity = train_step(len(ids), pixels, ids)
        optimiser.step()
        average.update()
        refill.tick()
        if clock.step % run.every(100) == 0:
            log.write(
                step=clock.step,
                texts=texts,
                identity=identity,
                pairs=len(pool.images[0]),
                progress=clock.progress,
            )
        if run.due("clip"):
            write_weights(run.out, average.state())
    finish(run.out, log, "clip", clock, average, batch=batch, minutes=minutes, resumed=resumed)
    log.write(event="milliseconds", step_ms=train_step.milliseconds())
    measure(run, log, model, tokenizer)


@torch.no_grad()
def measure(run: Run, log: Log, model: Any, tokenizer: Any) -> None:
    """Held-out retrieval: the right text among 64, the same character among 64."""
    pool = PairPool.__new__(PairPool)
    pool.renderer = Renderer(run.device, 996, "heldout", few=run.tiny)
    pool.tokenizer, pool.capacity, pool.chunk = tokenizer, 64, run.scale(64, 8)
    pool.images, pool.alphas, pool.ids = [torch.empty(0)] * 2, [torch.empty(0)] * 2, [torch.empty(0)] * 2
    pool.make()
    whole, ids, one, other = pool.batch(64, random.Random(1))
    pixels = normalised(torch.cat([whole, one, other]))
    seen = F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)
    said = F.normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output), dim=-1)
    n = len(whole)
    target = torch.arange(n, device=run.device)
    same = seen[n : 2 * n] @ seen[2 * n :].T
    log.write(
        event="measured", text_top1=((seen[:n] @ said.T).argmax(1) == target).float().mean(),
        identity_top1=(same.argmax(1) == target).float().mean(), same=same.diag().mean(),
        different=(same.sum() - same.diag().sum()) / max(1, n * n - n),
    )  # fmt: skip
