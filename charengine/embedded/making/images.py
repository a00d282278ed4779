"""Trains the SDXL-shaped picture model end to end: the U-Net and both text encoders, on several picture sizes."""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch.nn import functional as F

from charengine.embedded import grammar
from charengine.embedded.making.clock import Average, Clock, Log, decayed, finish, read_weights, write_weights
from charengine.embedded.making.data import CELL, Refill, Renderer, Scene, characters_of, picture_text, weights_of
from charengine.embedded.making.eye import Eye, load_eye
from charengine.embedded.making.family import build_text_encoders, build_unet
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.making.heads import TraitHeads
from charengine.embedded.making.run import Run
from charengine.embedded.making.vae import Autoencoder, trained_vae
from charengine.embedded.making.vocabulary import clip_tokenizer
from charengine.embedded.traits import BACKGROUNDS, POSES, VIEWS

SIZES = {(128, 384): 0.35, (256, 256): 0.49, (192, 256): 0.08, (256, 192): 0.08}  # the sweep draws squares
MIN_SNR = 5.0  # Hang et al. 2303.09556
GUIDANCE, STEPS = 4.0, 20
LOOKED_AT = 8  # one picture of so many is decoded and shown to the eye
LOOKED_FROM = 600  # time steps of noise, at most: beyond, a single guess is a blur
LOOK_WEIGHT = 0.02


class Writer:
    """SDXL's two text encoders: penultimate states of both, and the second's projection."""

    def __init__(self, run: Run) -> None:
        self.tokenizer = clip_tokenizer()
        first, second = build_text_encoders(run.sizes, self.tokenizer)
        self.first: Any = first.to(run.device)
        self.second: Any = second.to(run.device)

    def tokens(self, texts: list[str]) -> torch.Tensor:
        """Ids (n, 77)."""
        found = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        ids: torch.Tensor = found["input_ids"]
        return ids

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (n, 77, d) and pooled (n, p)."""
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids, output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds


class PicturePool:
    """Latents and tokenised prompts of rendered pictures, by size."""

    def __init__(self, run: Run, writer: Writer, vae: Autoencoder, capacity: int, chunk: int) -> None:
        self.renderer = Renderer(run.device, run.seed + 21, few=run.tiny, filled=0.25)
        self.writer, self.vae, self.capacity, self.chunk = writer, vae, capacity, chunk
        self.latents: dict[tuple[int, int], torch.Tensor] = {}
        self.weights: dict[tuple[int, int], torch.Tensor] = {}
        self.ids: dict[tuple[int, int], torch.Tensor] = {}
        self.traits: dict[tuple[int, int], torch.Tensor] = {}
        self.count = 0
        for size in SIZES:
            self.make(size)

    def make(self, size: tuple[int, int] | None = None) -> None:
        """Render one chunk of one size, with two prompts a picture; the oldest go when the pool is full."""
        rng = self.renderer.rng
        size = size or rng.choices(list(SIZES), weights=list(SIZES.values()))[0]
        indices = self.renderer.characters(self.chunk)
        plain, exact = (0.75, 0.7) if size == (128, 384) else (0.2, 0.4)
        images, alpha, scene = self.renderer.pictures(indices, size, plain=plain, exact=exact, toward=0.85)
        item = self.renderer.items(scene, size)
        latents, weights = self.vae.to_latents(images), weights_of(images, alpha > 25, CELL, item)
        characters = characters_of(indices)
        texts = [picture_text(scene, i, c, rng) for _ in range(2) for i, c in enumerate(characters)]
        ids = self.writer.tokens(texts).reshape(2, len(characters), 77).transpose(0, 1).to(latents.device)
        traits = indices.to(latents.device)
        if size in self.latents:
            room = int(self.capacity * SIZES[size])
            latents = torch.cat([self.latents[size], latents])[-room:]
            weights = torch.cat([self.weights[size], weights])[-room:]
            ids = torch.cat([self.ids[size], ids])[-room:]
            traits = torch.cat([self.traits[size], traits])[-room:]
        self.latents[size], self.ids[size], self.traits[size] = latents, ids, traits
        self.weights[size] = weights
        self.count += self.chunk

    def batch(self, n: int, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """Latents, weights, ids, traits of one batch; larger pictures come fewer at a time."""
        size = rng.choices(list(SIZES), weights=list(SIZES.values()))[0]
        n = max(1, n * 128 * 384 // (size[0] * size[1]))
        pool = self.latents[size]
        pick = torch.randint(len(pool), (n,), device=pool.device)
        which = torch.randint(2, (n,), device=pool.device)
        weights = self.weights[size][pick].float()
        return pool[pick].float(), weights, self.ids[size][pick, which], self.traits[size][pick]


def alphas(device: torch.device) -> torch.Tensor:
    """SDXL's cumulative alphas (1000,): scaled-linear betas from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(device)


def time_ids(n: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """SDXL's size conditioning (n, 6): original height and width, crop corner, target height and width."""
    width, height = size
    return torch.tensor([height, width, 0, 0, height, width], device=device).float().expand(n, -1)


class PictureStep:
    """Forward and backward of one batch, for `GraphedStep`."""

    def __init__(self, run: Run, writer: Writer, unet: Any, heads: TraitHeads, vae: Autoencoder) -> None:
        self.writer, self.unet, self.heads, self.vae = writer, unet, heads, vae
        self.kept = alphas(run.device)
        self.snr = self.kept / (1 - self.kept)
        self.eye = load_eye(run)

    def __call__(
        self, clean: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, traits: torch.Tensor, sizes: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Losses of latents (n, c, h, w): weighted by their noise, plain, of traits named, of what the eye sees."""
        n, device = len(clean), clean.device
        t = torch.randint(1000, (n,), device=device)
        if self.eye is not None:
            t[: looked_at(n)] = torch.randint(LOOKED_FROM, (looked_at(n),), device=device)
        noise = torch.randn_like(clean)
        a = self.kept[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * clean + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            states, pooled = self.writer.encode(ids)
            added = {"text_embeds": pooled, "time_ids": sizes}
            guess = self.unet(noisy, t, states, added_cond_kwargs=added, return_dict=False)[0]
            named = self.heads(torch.cat([states.mean(1), pooled], -1), traits)
        each = ((guess.float() - noise).square() * weights).mean((1, 2, 3))
        loss = (each * (MIN_SNR / self.snr[t]).clamp(max=1.0)).mean()
        seen = torch.zeros((), device=device)
        if self.eye is not None:
            few = slice(looked_at(n))
            guessed = (noisy[few] - (1 - a[few]).sqrt() * guess[few].float()) / a[few].sqrt()
            seen = look(self.eye, self.vae, guessed, clean[few], weights[few])
        (loss + 0.01 * named + LOOK_WEIGHT * seen).backward()
        return loss.detach(), each.mean().detach(), named.detach(), seen.detach()


def picture_model(run: Run, writer: Writer) -> tuple[dict[str, Any], bool]:
    """U-Net and the writer's text encoders by the names of their files, and whether all go on from earlier weights."""
    unet: Any = build_unet(run.sizes).to(run.device)
    modules = {"sdxl_unet": unet, "sdxl_text_encoder": writer.first, "sdxl_text_encoder_2": writer.second}
    resumed = all([read_weights(run.sources, name, module) for name, module in modules.items()])
    unet.to(memory_format=torch.channels_last)
    return modules, resumed


def learnt(unet: Any, writer: Writer, heads: TraitHeads, rate: float) -> list[dict[str, Any]]:
    """What an optimiser moves, the words by less than the pictures."""
    return decayed(unet, rate=rate) + decayed(writer.first, writer.second, heads, rate=rate * 0.7)


def train_images(run: Run, minutes: float) -> None:
    """Train U-Net and text encoders for `minutes`."""
    device, log, vae = run.device, Log(run.out, "images"), trained_vae(run, "sdxl")
    writer = Writer(run)
    modules, resumed = picture_model(run, writer)
    unet = modules["sdxl_unet"]
    average = Average(modules, 0.999)
    clock = Clock(minutes, max_steps=run.max_steps)
    pool = PicturePool(run, writer, vae, capacity=run.scale(120000, 40), chunk=run.scale(512, 4))
    alone = run.team.size == 1
    fill = Clock(run.scale(300 if alone else 600, 1) / 600 * min(1.0, minutes / 6))
    while fill.progress < 1 or pool.count < run.scale(2000, 16):
        pool.make()
    refill = Refill(pool.make, 0.12 if alone else 0.0)  # every refill of one would hold up the others
    heads = TraitHeads(3 * run.sizes.te_width).to(device)
    optimiser = GraphedOptimiser(learnt(unet, writer, heads, rate=5e-4 if resumed else 1e-3), clock)
    one = PictureStep(run, writer, unet, heads, vae)
    step = GraphedStep(one, device)
    rng = random.Random(run.seed + 6)
    batch = run.scale(256, 2)
    parameters = sum(p.numel() for m in modules.values() for p in m.parameters())
    log.write(event="start", resumed=resumed, eye=one.eye is not None, pictures=pool.count, parameters=parameters)
    ended = False
    while not ended:
        clean, weights, ids, traits = pool.batch(batch, rng)
        size = (8 * clean.shape[3], 8 * clean.shape[2])
        wrong = step(size, clean, weights, ids, traits, time_ids(len(clean), size, device))
        optimiser.step()
        ended = run.team.average(optimiser.parameters, clock.step, clock.progress >= 1)
        average.update()
        refill.tick()
        if clock.step % run.every(100) == 0 or clock.step <= 3:
            losses = dict(zip(("loss", "plain_loss", "traits", "seen"), wrong, strict=True))
            log.write(step=clock.step, **losses, pictures=pool.count, progress=clock.progress)
        if run.due("images"):
            write_weights(run.out, average.state())
    finish(run.out, log, "images", clock, average, batch=batch, minutes=minutes, resumed=resumed)
    log.write(event="milliseconds", step_ms=step.milliseconds())
    show(run, writer, unet, vae)


def looked_at(n: int) -> int:
    """How many of a batch of `n` pictures the eye sees: the first ones, whose noise is bounded."""
    return max(1, n // LOOKED_AT)


def look(eye: Eye, vae: Autoencoder, guessed: torch.Tensor, clean: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What the eye sees of a character in the pictures a U-Net guesses that is not in the true ones.

    Squared errors of latents hardly count in which hand a hook is. As the latent perceptual loss (Berrada et al. 2411.04873),
    but with the whole decoder and a network that reads this world's traits.

    Args:
        eye: which is not changed.
        vae: likewise.
        guessed: normalised latents (n, c, h, w), of one step.
        clean: the true ones.
        weights: (n, 1, h, w), how much a place counts.
    """
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=clean.device.type == "cuda", cache_enabled=False):
        with torch.no_grad():
            wanted = vae.from_latents(clean).float()
        apart, divergence = eye(vae.from_latents(guessed).float(), wanted, weights)
    seen: torch.Tensor = apart + divergence
    return seen


@torch.no_grad()
def paint(
    writer: Writer, unet: Any, prompts: list[str], size: tuple[int, int], seed: int,
    steps: int = STEPS, guidance: float = GUIDANCE,
) -> torch.Tensor:  # fmt: skip
    """Latents of pictures, by deterministic DDIM steps with guidance."""
    device = next(unet.parameters()).device
    kept = alphas(device)
    ids = writer.tokens([*prompts, *([""] * len(prompts))]).to(device)
    states, pooled = writer.encode(ids)
    n = len(prompts)
    noise = [
        torch.randn(1, 4, size[1] // 8, size[0] // 8, generator=torch.Generator().manual_seed(seed + i))
        for i in range(n)
    ]
    x = torch.cat(noise).to(device)
    added = {"text_embeds": pooled, "time_ids": time_ids(2 * n, size, device)}
    times = torch.linspace(999, 0, steps + 1).round().long().tolist()
    for now, then in itertools.pairwise(times):
        both = unet(
            torch.cat([x, x]),
            torch.full((2 * n,), now, device=device),
            states,
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()
        guess = both[n:] + guidance * (both[:n] - both[n:])
        clean = (x - (1 - kept[now]).sqrt() * guess) / kept[now].sqrt()
        x = kept[then].sqrt() * clean + (1 - kept[then]).sqrt() * guess
    return x


@torch.no_grad()
def show(run: Run, writer: Writer, unet: Any, vae: Autoencoder) -> None:
    """Held-out characters from prompts: rendered truth above, drawn below, at two sizes."""
    test = Renderer(run.device, 997, "heldout", few=run.tiny)
    rng, rows, said = random.Random(4), [], []
    steps = STEPS if not run.tiny else 2
    for size, plain in (((128, 384), 1.0), ((256, 256), 0.0)):
        images, _, scene = test.pictures(test.characters(run.scale(10, 2)), size, plain=plain, exact=1.0)
        prompts = [describe_scene(scene, i, rng) for i in range(len(images))]
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
            drawn = vae.to_pictures(paint(writer, unet, prompts, size, seed=7, steps=steps))
        rows += [images.float() / 255, drawn]
        said += prompts
    run.picture("images", [F.pad(row, (2, 2, 2, 2)) for row in rows])
    (run.out / "images_prompts.txt").write_text("\n".join(said), encoding="utf-8")


def describe_scene(scene: Scene, i: int, rng: random.Random) -> str:
    """A full prompt of one rendered picture."""
    traits = characters_of(scene.indices[i : i + 1])[0]
    view = VIEWS[scene.view[i]] if scene.view[i] >= 0 else None
    return grammar.describe(
        traits,
        view=view,
        pose=POSES[scene.pose[i]],
        background=BACKGROUNDS[scene.background[i]],
        rng=rng,
        style="prompt",
    )
