"""Trains the two autoencoders: L1, gradient and multi-scale terms, what an eye sees, a small KL term; figures weigh more than white."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from charengine.embedded.making.clock import Average, Clock, Log, decayed, read_facts, read_weights, write_weights
from charengine.embedded.making.data import Refill, Renderer, allow_recompiles, detail, to_unit
from charengine.embedded.making.eye import Eye, load_eye
from charengine.embedded.making.family import Sizes, build_qwen_vae, build_sdxl_vae
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.making.run import Run
from charengine.embedded.making.still import still_convolutions

KL_WEIGHT = {"qwen": 5e-4, "sdxl": 2e-4}
APART_WEIGHT, READING_WEIGHT = 1.0, 1.0  # of what the eye sees, its features and what it reads
STAY_WEIGHT = 0.5  # of moved latents, where a model on them waits to go on


class Autoencoder:
    """One of the two VAEs on still pictures, and its latent statistics."""

    def __init__(self, kind: str, sizes: Sizes, device: torch.device) -> None:
        self.kind, self.name = kind, {"qwen": "qwen_vae", "sdxl": "sdxl_vae"}[kind]
        if kind == "qwen":
            still_convolutions()
        self.model: Any = (build_qwen_vae(sizes) if kind == "qwen" else build_sdxl_vae(sizes)).to(device)
        self.encoder: Any = self.model.encoder
        self.decoder: Any = self.model.decoder
        self.facts: dict[str, list[float]] = {"mean": [0.0], "std": [1.0]}

    def compile(self) -> None:
        """Let training run fused kernels on CUDA: uncompiled, a step's time goes to reading and writing feature maps."""
        allow_recompiles()
        # one for each size: with sizes left open, compiling both halves took longer than five minutes of training
        self.encoder, self.decoder = (
            torch.compile(half, dynamic=False) for half in (self.model.encoder, self.model.decoder)
        )

    def moments(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance (n, c, h/8, w/8) of the latents of pictures (n, 3, h, w) in [-1, 1]."""
        # compiled for the size of training pictures alone
        encoder = self.encoder if torch.is_grad_enabled() else self.model.encoder
        found = self.model.quant_conv(encoder(self._frames(pictures))).float()
        mean, logvar = (found[:, :, 0] if self.kind == "qwen" else found).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def rebuild(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, h, w) from raw latents, not clamped as `decode` does: a clamped pixel has no gradient."""
        pictures: torch.Tensor = self.decoder(self.model.post_quant_conv(self._frames(latents)))
        return pictures[:, :, 0] if self.kind == "qwen" else pictures

    def from_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, h, w), about [-1, 1], of normalised latents, for a gradient to go through."""
        mean, std = self.scales
        return self.rebuild(latents.float() * std + mean)

    @cached_property
    def scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The statistics where the model is: what comes from the host cannot be captured."""
        return self._facts(next(self.model.parameters()))

    def _frames(self, stills: torch.Tensor) -> torch.Tensor:
        return stills.unsqueeze(2) if self.kind == "qwen" else stills

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, h, w) from raw latents."""
        pictures: torch.Tensor = self.model.decode(self._frames(latents)).sample
        return pictures[:, :, 0] if self.kind == "qwen" else pictures

    def _facts(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(self.facts[k], device=like.device).view(1, -1, 1, 1) for k in ("mean", "std"))
        return mean, std

    @torch.no_grad()
    def to_latents(self, pictures: torch.Tensor, batch: int = 64) -> torch.Tensor:
        """Normalised latents (n, c, h/8, w/8), bf16, of uint8 pictures."""
        out = []
        for i in range(0, len(pictures), batch):
            with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.device.type == "cuda"):
                z, _ = self.moments(to_unit(pictures[i : i + batch]))
            mean, std = self._facts(z)
            out.append(((z - mean) / std).to(torch.bfloat16))
        return torch.cat(out)

    @torch.no_grad()
    def to_pictures(self, latents: torch.Tensor, batch: int = 64) -> torch.Tensor:
        """Pictures in [0, 1] of normalised latents."""
        out = []
        for i in range(0, len(latents), batch):
            z = latents[i : i + batch].float()
            mean, std = self._facts(z)
            z = z * std + mean
            with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.device.type == "cuda"):
                x = self.decode(z)
            out.append((x.float() / 2 + 0.5).clamp(0, 1))
        return torch.cat(out)

    def freeze(self) -> Autoencoder:
        """Itself, not trained any more."""
        self.model.requires_grad_(False)
        return self

    def moved(self, pictures: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Mean square by which latents (n, c, h/8, w/8) left its own of the same pictures, in its standard deviations."""
        with torch.no_grad():
            own, _ = self.moments(pictures)
        # a number, not a tensor: what comes from the host cannot be captured
        return ((mean - own) / (sum(self.facts["std"]) / len(self.facts["std"]))).square().mean()

    def load(self, folders: list[Path]) -> bool:
        """Weights and statistics from the first folder that has them."""
        facts = read_facts(folders, self.name)
        if facts is None or not read_weights(folders, self.name, self.model):
            return False
        self.facts = facts
        return True

    def must_load(self, folders: list[Path]) -> None:
        """`load`, or FileNotFoundError where no folder has them."""
        if not self.load(folders):
            raise FileNotFoundError(
                f"no {self.name}.safetensors in {[str(f) for f in folders]}: train {self.name} first"
            )

    @torch.no_grad()
    def measure_latents(self, pictures: torch.Tensor) -> None:
        """Set the statistics from data. SDXL keeps one scaling factor and no shift, as its pipeline expects."""
        self.facts = {"mean": [0.0], "std": [1.0]}
        z = self.to_latents(pictures).float()
        if self.kind == "qwen":
            self.facts = {"mean": z.mean((0, 2, 3)).tolist(), "std": z.std((0, 2, 3)).tolist()}
        else:
            self.facts = {"mean": [0.0], "std": [z.square().mean().sqrt().item()]}


class Pictures:
    """A pool of rendered pictures by size, refreshed as training goes on."""

    def __init__(self, renderer: Renderer, sizes: list[tuple[int, int]], each: int, chunk: int) -> None:
        self.renderer, self.sizes, self.each, self.chunk = renderer, sizes, each, chunk
        self.images: dict[tuple[int, int], torch.Tensor] = {}
        self.weight: dict[tuple[int, int], torch.Tensor] = {}
        self.next = 0
        for size in sizes:
            self.make(size)

    def make(self, size: tuple[int, int] | None = None) -> None:
        """Render one chunk of one size; the oldest go when the pool is full."""
        size = size or self.sizes[self.next % len(self.sizes)]
        self.next += 1
        upright = size[1] > 1.6 * size[0]
        if size == (384, 384):
            images, _ = self.renderer.sheets(self.chunk // 2)
            alpha = (images.amin(1, keepdim=True) < 250).to(torch.uint8) * 255
        else:
            indices = self.renderer.characters(self.chunk)
            images, alpha, _ = self.renderer.pictures(indices, size, plain=0.8 if upright else 0.25, exact=0.6)
        if size in self.images:
            images = torch.cat([self.images[size], images])[-self.each :]
            alpha = torch.cat([self.weight[size], alpha])[-self.each :]
        self.images[size], self.weight[size] = images, alpha

    def batch(self, n: int, side: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """Random squares (n, 3, side, side) in [-1, 1] and their weights."""
        size = rng.choice(self.sizes)
        pool, weight = self.images[size], self.weight[size]
        pick = torch.randint(len(pool), (n,), device=pool.device)
        side_x, side_y = min(side, size[0]), min(side, size[1])
        # 8 px steps would let the network learn the grid's phase
        x, y = rng.randint(0, size[0] - side_x), rng.randint(0, size[1] - side_y)
        window = (slice(None), slice(None), slice(y, y + side_y), slice(x, x + side_x))
        pictures, figure = to_unit(pool[pick][window]), (weight[pick][window] > 25).float()
        return pictures, 1 + figure * (2 + 2 * detail(pictures))


def rebuild_loss(out: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted L1, L1 of gradients, and L1 at half and quarter size."""
    loss = ((out - wanted).abs() * weight).mean()
    for axis in (2, 3):
        steeper, inside = out.diff(dim=axis) - wanted.diff(dim=axis), weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + 0.7 * (steeper.abs() * inside).mean()
    for factor in (2, 4):
        loss = loss + 0.5 * (F.avg_pool2d(out, factor) - F.avg_pool2d(wanted, factor)).abs().mean()
    return loss


@torch.no_grad()
def psnr(vae: Autoencoder, pictures: torch.Tensor, weight: torch.Tensor | None = None) -> float:
    """Decibels, of the figure's pixels only when `weight` says where it is."""
    wrong = (vae.to_pictures(vae.to_latents(pictures)) - pictures.float() / 255).square().mean(1, keepdim=True)
    where = torch.ones_like(wrong) if weight is None else (weight > 25).float()
    return float(-10 * torch.log10((wrong * where).sum() / where.sum()))


@dataclass(frozen=True)
class VaeStep:
    """Forward and backward of one batch, for `GraphedStep`."""

    vae: Autoencoder
    decoder_only: bool
    eye: Eye | None
    stays: Autoencoder | None  # as it was, where its latents are in use

    def __call__(self, wanted: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Losses of pictures (n, 3, h, w) in [-1, 1]: of rebuilding, KL, the eye's two, and how far latents moved."""
        vae, device = self.vae, wanted.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            mean, logvar = vae.moments(wanted)
            z = mean.detach() if self.decoder_only else mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            out = vae.rebuild(z)
            seen = self.eye(out, wanted, weight) if self.eye else (torch.zeros((), device=device),) * 2
        loss = rebuild_loss(out.float(), wanted, weight)
        whole = loss + APART_WEIGHT * seen[0] + READING_WEIGHT * seen[1]
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        moved = self.stays.moved(wanted, mean) if self.stays else torch.zeros((), device=device)
        (whole if self.decoder_only else whole + KL_WEIGHT[vae.kind] * kl + STAY_WEIGHT * moved).backward()
        return loss.detach(), kl.detach(), seen[0].detach(), seen[1].detach(), moved.detach()


def train_vae(run: Run, kind: str, minutes: float, decoder_only: bool = False) -> Autoencoder:
    """Train one VAE before the models on its latents, or afterwards its decoder alone, so that the latents stay."""
    device, log = run.device, Log(run.out, f"{kind}_decoder" if decoder_only else f"{kind}_vae")
    vae = Autoencoder(kind, run.sizes, device)
    resumed = vae.load(run.sources)
    if decoder_only:
        if not resumed:
            vae.must_load(run.made)
        for name, p in vae.model.named_parameters():
            p.requires_grad_(name.startswith(("decoder", "post_quant")))
    if device.type == "cuda":
        vae.compile()
    clock = Clock(minutes, max_steps=run.max_steps)
    pool = _pictures(run, kind, decoder_only)
    refill = Refill(pool.make, share=0.2 if not run.tiny else 0.05)
    eye = load_eye(run)
    stays = copy.deepcopy(vae).freeze() if resumed and not decoder_only else None
    average = Average({vae.name: vae.model}, 0.998)
    optimiser = GraphedOptimiser(decayed(vae.model, rate=2e-3, decay=0.0), clock)
    rng = random.Random(run.seed)
    # an eye looks at whole pictures
    batch, side = (run.scale(16, 2), 384) if eye else (run.scale(48, 2), run.scale(128, 64))
    step = GraphedStep(VaeStep(vae, decoder_only, eye, stays), device)
    parameters = sum(p.numel() for p in vae.model.parameters())
    log.write(event="start", resumed=resumed, eye=eye is not None, parameters=parameters)
    while clock.progress < 1:
        wanted, weight = pool.batch(batch, side, rng)
        loss, kl, apart, reading, moved = step(wanted.shape, wanted, weight)
        optimiser.step()
        average.update()
        refill.tick()
        if clock.step % run.every(100) == 0:
            more = {"apart": apart, "reading": reading, "moved": moved}
            log.write(step=clock.step, loss=loss, kl=kl, progress=clock.progress, **more)
        if run.due(f"{kind}_vae"):
            save(run, vae, average, None if decoder_only else pool)
    save(run, vae, average, None if decoder_only else pool)
    average.swap()
    log.write(event="milliseconds", step_ms=step.milliseconds())
    _measure(run, log, vae, clock.step)
    return vae.freeze()


def trained_vae(run: Run, kind: str) -> Autoencoder:
    """The VAE that this run or an earlier one trained, which stays as it is; raises as `must_load` does."""
    vae = Autoencoder(kind, run.sizes, run.device)
    vae.must_load(run.made)
    return vae.freeze()


def _pictures(run: Run, kind: str, decoder_only: bool) -> Pictures:
    """What it learns from."""
    shapes = [(128, 384), (256, 256), (192, 256)]
    if kind == "qwen":
        shapes = [(384, 384), (256, 256)] if decoder_only else [(384, 384), (128, 384)]
    renderer = Renderer(run.device, run.seed + 1, few=run.tiny, filled=0.5)
    pool = Pictures(renderer, shapes, each=run.scale(8000, 8), chunk=run.scale(512, 4))
    for _ in range(run.scale(9, 0)):
        pool.make()
    return pool


def _measure(run: Run, log: Log, vae: Autoencoder, steps: int) -> None:
    """Log and show how well held-out characters are rebuilt."""
    test = Renderer(run.device, 999, "heldout", few=run.tiny)
    images, alpha, _ = test.pictures(test.characters(run.scale(64, 2)), (128, 384), plain=0.7, exact=1.0)
    found = {"psnr": psnr(vae, images), "psnr_figure": psnr(vae, images, alpha), "latent_std": vae.facts["std"][0]}
    log.write(event="done", steps=steps, **found)
    rebuilt = vae.to_pictures(vae.to_latents(images))
    run.picture(f"{vae.kind}_vae", [images[:12].float() / 255, rebuilt[:12]])


def save(run: Run, vae: Autoencoder, average: Average, pool: Pictures | None) -> None:
    """Write the averaged weights and the latent statistics that belong to them."""
    if pool is not None:
        average.swap()
        vae.measure_latents(pool.images[pool.sizes[0]][: run.scale(256, 4)])
        average.swap()
    write_weights(run.out, average.state(), {vae.name: vae.facts})
