"""Teaches the picture model by what eyes read in pictures that it draws itself, beside its ordinary training.

A squared error of noise hardly counts whether a hand holds a sword. Here a batch is drawn as users draw, in few guided
steps from pure noise, and readers of traits say what is missing. The gradient goes back to one step of each drawing, as in
DRTune (Wu et al. 2405.00760): what the U-Net was shown there is taken as given, and a change of its answer is carried to the
end by the flow of a Gaussian of unit variance, which shrinks it by sqrt(1 + sigma^2). Two eyes read who is seen, and two readers
of scenes the pose and the scenery; pictures are moved and made noisy for them, and the ordinary loss on renders is kept at
their side, so that no pattern pays that only a reader falls for.

What pays is also what is read best: everybody in the middle of the picture, turned to the viewer. So every prompt is drawn
twice, and where the two pictures differ less than renders of one prompt do, in what it leaves open, that is missed too.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch.nn import functional as F

from charengine.embedded import grammar, probe
from charengine.embedded.making.clock import Average, Clock, Log, finish, write_weights
from charengine.embedded.making.data import FILLERS, STANDING, WHITE, Refill, Renderer, characters_of, nonsense, sent
from charengine.embedded.making.eye import Eye, load_eyes
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.making.heads import TraitHeads
from charengine.embedded.making.images import (
    PicturePool,
    PictureStep,
    Writer,
    alphas,
    learnt,
    picture_model,
    time_ids,
)
from charengine.embedded.making.run import Run
from charengine.embedded.making.scene_eye import alike, load_scene_eyes, spreads
from charengine.embedded.making.vae import Autoencoder, trained_vae
from charengine.embedded.traits import BACKGROUNDS, COLUMN, POSES, VIEWS, visible_mask

STEPS = 12  # as the sweep draws
SIZES = {(256, 256): 0.75, (128, 384): 0.25}
SIDE_WEIGHT = 4.0  # times another trait's, where a hand holds something
VIEW_WEIGHT = 0.5
SCENE_WEIGHT = 0.5  # of pose and of scenery
VARIETY_WEIGHT = 2.0
GUIDANCE = (2.5, 4.5)  # as users and sweeps ask for
PULL = 2.0  # times the gradient of the ordinary loss, as both are at the start
RATE = 1.5e-4


class Wishes:
    """Prompts that say everything about a character, with what their pictures have to show; each stands there twice."""

    def __init__(self, run: Run, writer: Writer) -> None:
        self.renderer = Renderer(run.device, run.seed + 61, few=run.tiny, filled=0.25)
        self.writer, self.device, self.rng = writer, run.device, random.Random(run.seed + 62)

    def batch(self, n: int, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Ids (n, 77), traits (n, n_traits), views (n,), how much each trait counts (n, n_traits), whether the view is said
        (n,), poses (n,) and sceneries (n,)."""
        rng, half = self.rng, n // 2
        traits = self.renderer.characters(half)
        views = torch.tensor(rng.choices(range(3), weights=(7, 2, 1), k=half))
        said = (views > 0) | (torch.rand(half, generator=self.renderer.generator) < 0.3)
        plain = [size == (128, 384) and rng.random() < 0.75 for _ in range(half)]
        poses = torch.tensor([STANDING if p else rng.randrange(len(POSES)) for p in plain])
        scenes = torch.tensor([WHITE if p else rng.randrange(len(BACKGROUNDS)) for p in plain])
        told = zip(characters_of(traits), *(x.tolist() for x in (views, said, poses, scenes)), strict=True)
        ids = self.writer.tokens([self.say(*each) for each in told])
        held = torch.zeros_like(traits, dtype=torch.float)
        for name in probe.SIDE_ITEMS:
            held[:, COLUMN[name]] = (traits[:, COLUMN[name]] != 0).float()
        weights = visible_mask(traits, views).float() * (1 + (SIDE_WEIGHT - 1) * held)
        both = (ids, traits, views, weights, said, poses, scenes)
        return tuple(sent(value.repeat_interleave(2, 0), self.device) for value in both)

    def say(self, who: Any, view: int, said: bool, pose: int, scene: int) -> str:
        """A whole prompt."""
        rng = self.rng
        text = grammar.describe(
            who, view=VIEWS[view], rng=rng, style="prompt" if rng.random() < 0.6 else "tags", pose=POSES[pose],
            background=BACKGROUNDS[scene], say_view=said,
        )  # fmt: skip
        if rng.random() < 0.3:
            text = f"{nonsense(rng)}, {text}"
        return f"{text}, {rng.choice(('full body', 'full body', *FILLERS))}" if rng.random() < 0.35 else text


class DrawnStep:
    """Draws a batch, and sends back what eyes miss in it; for `GraphedStep`."""

    def __init__(
        self, run: Run, writer: Writer, unet: Any, vae: Autoencoder, eyes: list[Eye], scene_eyes: list[probe.Probe]
    ) -> None:
        self.writer, self.unet, self.vae, self.device = writer, unet, vae, run.device
        self.eyes = [eye.reader for eye in eyes]
        self.scene_eyes = [(eye, spreads(run, eye)) for eye in scene_eyes]
        self.steps = run.scale(STEPS, 2)
        self.generator = torch.Generator().manual_seed(run.seed + 63)
        times = torch.linspace(1000, 0, self.steps + 1).round().long()[:-1] - 1
        kept = alphas(torch.device("cpu"))[times]
        self.times = times.to(run.device)
        self.sigmas = [*((1 - kept) / kept).sqrt().tolist(), 0.0]
        reach = [(then - now) / (1 + then**2) ** 0.5 for now, then in itertools.pairwise(self.sigmas)]
        self.reach = torch.tensor(reach, device=run.device)
        self.shown = torch.tensor(self.sigmas[:-1], device=run.device)
        self.pull = torch.ones((), device=run.device)

    def guess(self, x: torch.Tensor, sigma: Any, t: torch.Tensor, told: tuple[Any, ...]) -> torch.Tensor:
        """The noise (n, c, h, w) that the U-Net sees in x, which has `sigma` of it."""
        states, pooled, sizes = told
        shown = (x / (1 + sigma**2) ** 0.5).contiguous(memory_format=torch.channels_last)
        added = {"text_embeds": pooled, "time_ids": sizes}
        seen: torch.Tensor = self.unet(shown, t, states, added_cond_kwargs=added, return_dict=False)[0]
        return seen.float()

    @torch.no_grad()
    def draw(
        self, noise: torch.Tensor, told: tuple[Any, ...], empty: tuple[Any, ...], guidance: torch.Tensor
    ) -> list[torch.Tensor]:
        """Latents before each step, and at the end; `guidance` of each picture, (n, 1, 1, 1)."""
        n = len(noise)
        both = tuple(torch.cat(pair) for pair in zip(told, empty, strict=True))
        shown = [noise * self.sigmas[0]]
        for i, (now, then) in enumerate(itertools.pairwise(self.sigmas)):
            x = shown[-1]
            named, unnamed = self.guess(torch.cat([x, x]), now, self.times[i].expand(2 * n), both).chunk(2)
            shown.append(x + (then - now) * (unnamed + guidance * (named - unnamed)))
        return shown

    def __call__(
        self, noise: torch.Tensor, guidance: torch.Tensor, ids: torch.Tensor, traits: torch.Tensor, views: torch.Tensor,
        weights: torch.Tensor, said: torch.Tensor, poses: torch.Tensor, scenes: torch.Tensor, sizes: torch.Tensor,
        nothing: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """What is missed in pictures of these prompts: of traits, of views, of poses and scenery, and of variety."""
        n = len(noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            states, pooled = self.writer.encode(ids)
            with torch.no_grad():
                none, no = self.writer.encode(nothing)
            told = (states, pooled, sizes)
            empty = (none.expand(n, -1, -1), no.expand(n, -1), sizes)
            shown = self.draw(noise, tuple(value.detach() for value in told), empty, guidance)
            which = torch.randint(self.steps, (n,), device=self.device)
            at = torch.stack(shown[:-1])[which, torch.arange(n, device=self.device)]
            again = self.guess(at, self.shown[which].view(-1, 1, 1, 1), self.times[which], told)
            # of the same value as what was drawn; only the gradient is new
            moved = self.reach[which].view(-1, 1, 1, 1) * guidance * (again - again.detach())
            pictures = self.vae.from_latents(shown[-1] + moved).float() / 2 + 0.5
            whom = [eye(probe.augment(pictures, self.generator)) for eye in self.eyes]
            where = [eye(probe.augment(pictures, self.generator)) for eye, _ in self.scene_eyes]
        zero = torch.zeros((), device=self.device)
        missed, turned, strange, same = zero, zero, zero, zero
        for heads in whom:
            each = [F.cross_entropy(h.float(), traits[:, i], reduction="none") for i, h in enumerate(heads[:-1])]
            missed = missed + (torch.stack(each, 1) * weights).sum() / weights.sum() / len(whom)
            turned = turned + _turned(heads[-1].float(), views, said) / len(whom)
        for (pose, scenery, places), (_, apart) in zip(where, self.scene_eyes, strict=True):
            wrong = F.cross_entropy(pose.float(), poses) + F.cross_entropy(scenery.float(), scenes)
            strange = strange + wrong / len(where)
            same = same + alike(places, scenes, ~said, apart) / len(where)
        wanted = missed + VIEW_WEIGHT * turned + SCENE_WEIGHT * strange + VARIETY_WEIGHT * same
        (wanted * self.pull).backward()
        return missed.detach(), turned.detach(), strange.detach(), same.detach()


def _turned(logits: torch.Tensor, views: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the view where it is said; of not being seen from behind where it is not."""
    named = F.cross_entropy(logits, views, reduction="none")
    behind = logits.log_softmax(1)[:, : VIEWS.index("back")].logsumexp(1)
    return torch.where(said, named, -behind).mean()


def train_drawn(run: Run, minutes: float) -> None:
    """Go on training U-Net and text encoders for `minutes`, by renders and by their own pictures in turn."""
    device, log, vae = run.device, Log(run.out, "drawn"), trained_vae(run, "sdxl")
    writer = Writer(run)
    modules, resumed = picture_model(run, writer)
    unet, eyes, scene_eyes = modules["sdxl_unet"], load_eyes(run), load_scene_eyes(run)
    if not (eyes and scene_eyes and resumed):
        raise FileNotFoundError(
            "no eye, no scene_eye, or no picture model to go on from: train the parts eye and scene_eye, and give --from"
        )
    average = Average(modules, 0.995)
    pool = PicturePool(run, writer, vae, capacity=run.scale(60000, 40), chunk=run.scale(512, 4))
    fill = Clock(run.scale(25, 1) / 60)
    while fill.progress < 1:
        pool.make()
    clock, refill = Clock(minutes, max_steps=run.max_steps), Refill(pool.make, 0.05)
    heads = TraitHeads(3 * run.sizes.te_width).to(device)
    optimiser = GraphedOptimiser(learnt(unet, writer, heads, rate=RATE), clock)
    told = PictureStep(run, writer, unet, heads, vae)
    told.eye = None  # what it would see here, eyes see in the pictures
    drawing = DrawnStep(run, writer, unet, vae, eyes, scene_eyes)
    ordinary, own = GraphedStep(told, device), GraphedStep(drawing, device)
    wishes, rng = Wishes(run, writer), random.Random(run.seed + 64)
    nothing = writer.tokens([""]).to(device)

    def by_renders() -> tuple[torch.Tensor, ...]:
        clean, weights, ids, traits = pool.batch(run.scale(128, 2), rng)
        size = (8 * clean.shape[3], 8 * clean.shape[2])
        return ordinary(size, clean, weights, ids, traits, time_ids(len(clean), size, device))

    def by_own(size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        n = run.scale(96, 2)
        noise = torch.randn(n, 4, size[1] // 8, size[0] // 8, device=device)
        low, high = GUIDANCE
        guidance = (low + (high - low) * torch.rand(n // 2, device=device)).repeat_interleave(2).view(-1, 1, 1, 1)
        return own(size, noise, guidance, *wishes.batch(n, size), time_ids(n, size, device), nothing)

    drawing.pull.fill_(PULL * _norm(optimiser, by_renders) / _norm(optimiser, lambda: by_own((256, 256))))
    log.write(event="start", eyes=len(eyes), scene_eyes=len(scene_eyes), pictures=pool.count, pull=drawing.pull)
    while clock.progress < 1:
        wrong = by_renders()
        size = rng.choices(list(SIZES), weights=list(SIZES.values()))[0]
        found = dict(zip(("missed", "turned", "strange", "alike"), by_own(size), strict=True))
        optimiser.step()
        average.update()
        refill.tick()
        if clock.step % run.every(25) == 0:
            log.write(step=clock.step, loss=wrong[0], **found, size=size, progress=clock.progress)
        if run.due("drawn"):
            write_weights(run.out, average.state())
    finish(run.out, log, "drawn", clock, average, minutes=minutes)
    log.write(event="milliseconds", drawn_ms=own.milliseconds(2), step_ms=ordinary.milliseconds(2))


def _norm(optimiser: GraphedOptimiser, step: Any, batches: int = 6) -> float:
    """Length of the mean gradient of a few batches; leaves none behind. What is captured on the way adds to it: that goes first."""
    for _ in range(2):
        step()
    gradients = [p.grad for p in optimiser.parameters if p.grad is not None]
    torch._foreach_zero_(gradients)
    for _ in range(batches):
        step()
    length = float(torch.nn.utils.get_total_norm(gradients)) / batches
    torch._foreach_zero_(gradients)
    return max(length, 1e-8)
