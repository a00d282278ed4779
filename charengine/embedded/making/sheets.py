"""Trains the sheet model end to end: the denoiser, and the Qwen2.5-VL that reads prompts for it and captions pictures."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch

from charengine.embedded.making.clock import Average, Clock, Log, decayed, finish, read_weights, write_weights
from charengine.embedded.making.data import Refill
from charengine.embedded.making.edits import EDITS, EditPool, seen_tokens
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.making.heads import TraitHeads
from charengine.embedded.making.run import Run
from charengine.embedded.making.sheet_model import Denoiser, Reader, caption_loss, flow_loss, zero_gates
from charengine.embedded.making.sheet_pools import LATENTS, VISION, CaptionPool, SheetPool
from charengine.embedded.making.sheet_samples import show
from charengine.embedded.making.still import pixel_patches
from charengine.embedded.making.vae import Autoencoder, trained_vae

EDIT_SHARE = 0.7  # of the steps; the rest draws sheets from words
CAPTION_EVERY = 3  # steps: captions are learnt sooner than sheets, and a third of a step's time went to them
UNSAID = 0.1  # share of batches without a prompt, so that guidance works


class Pools:
    """What is learnt from: sheets, captions and edits, rendered before the first step and, by a process alone, later too."""

    def __init__(self, run: Run, reader: Reader, vae: Autoencoder) -> None:
        self.run = run
        self.sheets = SheetPool(run, reader, vae, capacity=run.scale(100000, 32), chunk=run.scale(256, 8))
        self.captions = CaptionPool(run, reader, vae, capacity=run.scale(20000, 16), chunk=run.scale(512, 4))
        self.edits = EditPool(run, reader, vae, capacity=run.scale(40000, 16), chunk=run.scale(256, 4))

    @property
    def counts(self) -> dict[str, int]:
        """Samples, for the log."""
        captions = len(self.captions.answers[128, 384])
        return {"sheets": self.sheets.count, "edits": self.edits.count, "captions": captions}

    def fill(self, minutes: float) -> None:
        """Render until training can begin: for a share of `minutes`, and at least the few that it needs."""
        run, alone = self.run, self.run.team.size == 1
        until = Clock(run.scale(500 if alone else 900, 1) / 600 * min(1.0, minutes / 6))
        while until.progress < 1 or self.sheets.count < run.scale(1000, 16) or self.edits.count < run.scale(3000, 12):
            self.sheets.make()
            self.edits.make()
            if self.counts["captions"] < min(run.scale(8000, 8), self.sheets.count // 2):
                self.captions.make()

    def refills(self) -> list[Refill]:
        """What keeps them fresh. A team renders all it needs first: every refill of one would hold up the others."""
        if self.run.team.size > 1:
            return []
        return [Refill(self.sheets.make, 0.08), Refill(self.edits.make, 0.12), Refill(self.captions.make, 0.03)]


class Steps:
    """Forward and backward of one batch of each kind, captured once a shape on CUDA.

    Attributes:
        wrong: what the last batch of each kind was wrong by.
    """

    def __init__(self, run: Run, reader: Reader, denoiser: Denoiser, heads: TraitHeads, pools: Pools) -> None:
        self.run, self.reader, self.denoiser, self.heads, self.pools = run, reader, denoiser, heads, pools
        self.unsaid = torch.tensor(reader.tokens([" "]), device=run.device)
        self.modes = {
            mode: GraphedStep(functools.partial(self._flow, shown), run.device)
            for mode, shown in ((LATENTS, pools.sheets.blank), (VISION, None))
        }
        self.edits = GraphedStep(functools.partial(self._flow, None), run.device)
        self.captions = GraphedStep(self._caption, run.device)
        self.unsaid_edits = {name: reader.tokens([" "], seen_tokens(edit.source)) for name, edit in EDITS.items()}
        self.wrong = dict.fromkeys(("flow", "edit", "traits", "caption"), torch.zeros(()))

    def draw(self, rng: random.Random) -> None:
        """Learn from one batch of edits, or of sheets."""
        if rng.random() < EDIT_SHARE:
            name, (latents, weights, ids, traits, source, eye) = self.pools.edits.batch(rng, self.run.tiny)
            if rng.random() < UNSAID:
                ids = torch.tensor(self.unsaid_edits[name], device=self.run.device).expand(len(ids), -1)
            self.wrong["edit"], _ = self.edits((name, ids.shape[1]), latents, weights, ids, traits, source, eye)
        else:
            mode, (latents, weights, ids, traits) = self.pools.sheets.batch(self.run.scale(112, 2), rng)
            ids = self.unsaid.expand(len(ids), -1) if rng.random() < UNSAID else ids
            self.wrong["flow"], self.wrong["traits"] = self.modes[mode](ids.shape[1], latents, weights, ids, traits)

    def caption(self, rng: random.Random) -> None:
        """Learn from one batch of captions."""
        pixels, ids, labels = self.pools.captions.batch(self.run.scale(96, 2), rng)
        (self.wrong["caption"],) = self.captions(pixels.shape, pixels, ids, labels)

    def milliseconds(self) -> dict[str, Any]:
        """Time of each captured step, after the last update."""
        times: dict[object, object] = {mode: step.milliseconds() for mode, step in self.modes.items()}
        times["edits"] = self.edits.milliseconds()
        return {"flow": times, "caption": self.captions.milliseconds()}

    def _flow(
        self, shown: torch.Tensor | None, latents: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor,
        traits: torch.Tensor, source: torch.Tensor | None = None, eye: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        beside = shown if source is None else source
        with self._autocast():
            text = self.reader.encode(ids) if eye is None else self.reader.encode(ids, *pixel_patches(eye))
            flow, named = flow_loss(self.denoiser, self.heads, latents, weights, text, traits, beside)
        (flow + 0.05 * named).backward()
        return flow.detach(), named.detach()

    def _caption(self, pixels: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self._autocast():
            loss = caption_loss(self.reader, self.pools.captions.before, pixels, ids, labels)
        (0.5 * loss).backward()
        return (loss.detach(),)

    def _autocast(self) -> Any:
        kind = self.run.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False)


def train_sheets(run: Run, minutes: float) -> None:
    """Train denoiser and VL together for `minutes`."""
    log, vae = Log(run.out, "sheets"), trained_vae(run, "qwen")
    reader, denoiser = Reader(run), Denoiser(run)
    zero_gates(denoiser.model)
    resumed = read_weights(run.sources, "qwen_transformer", denoiser.model) and read_weights(
        run.sources, "qwen_text_encoder", reader.model
    )
    average = Average({"qwen_transformer": denoiser.model, "qwen_text_encoder": reader.model}, 0.999)
    denoiser.prepare()
    clock = Clock(minutes, max_steps=run.max_steps)
    pools = Pools(run, reader, vae)
    pools.fill(minutes)
    log.write(event="pool", **pools.counts, seconds_spent=clock.seconds)
    refills = pools.refills()
    heads = TraitHeads(2 * run.sizes.vl_width).to(run.device)
    rate = 8e-4 if resumed else 1e-3
    groups = decayed(denoiser.model, rate=rate) + decayed(reader.model, heads, rate=0.8 * rate)
    optimiser = GraphedOptimiser(groups, clock)
    rng = random.Random(run.seed + 5)
    steps = Steps(run, reader, denoiser, heads, pools)
    parameters = sum(p.numel() for p in [*denoiser.model.parameters(), *reader.model.parameters()])
    log.write(event="start", resumed=resumed, parameters=parameters)
    ended = False
    while not ended:
        steps.draw(rng)
        if clock.step % CAPTION_EVERY == 0:
            steps.caption(rng)
        optimiser.step()
        ended = run.team.average(optimiser.parameters, clock.step, clock.progress >= 1)
        average.update()
        for refill in refills:
            refill.tick()
        if clock.step % run.every(50) == 0 or clock.step <= 3:
            counts = {"sheets": pools.sheets.count, "edits": pools.edits.count}
            log.write(step=clock.step, **steps.wrong, **counts, progress=clock.progress)
        if run.due("sheets"):
            write_weights(run.out, average.state())
    finish(run.out, log, "sheets", clock, average, batch=run.scale(112, 2), minutes=minutes, resumed=resumed)
    log.write(event="milliseconds", **steps.milliseconds())
    if run.team.rank == 0:
        show(run, log, reader, denoiser, vae, pools.sheets.blank)
