"""Samples of the sheet model as it trains: sheets as the pipeline draws them, and captions."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from charengine.embedded import grammar, probe
from charengine.embedded.captioning import CAPTION_PROMPT
from charengine.embedded.making.clock import Log
from charengine.embedded.making.data import Renderer, characters_of
from charengine.embedded.making.edits import EDITS, EditPool, looked_at
from charengine.embedded.making.run import Run
from charengine.embedded.making.sheet_model import Denoiser, Reader, Shape, from_tokens, shape_of, to_tokens
from charengine.embedded.making.sheet_pools import LATENTS, VISION
from charengine.embedded.making.still import look, normalised, pixel_patches, read
from charengine.embedded.making.vae import Autoencoder
from charengine.embedded.shape import SHEET_SIZE
from charengine.embedded.traits import BACKGROUNDS, POSES, VIEWS

GUIDANCE, STEPS, SHIFT = 3.0, 16, 3.0


@dataclass(frozen=True)
class Shown:
    """What the model sees beside the prompts.

    Attributes:
        latents: (1 or n, 16, h, w) of the picture, or None where only the VL sees it.
        eye: (n, 3, h, w) as the VL sees it, normalised, or None: the template.
    """

    latents: torch.Tensor | None = None
    eye: torch.Tensor | None = None


@torch.no_grad()
def draw(
    reader: Reader,
    denoiser: Denoiser,
    shape: Shape,
    prompts: list[str],
    shown: Shown,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> torch.Tensor:
    """Latents of pictures of `shape` tokens, sampled as the pipeline does (Euler, shifted sigmas, norm-rescaled guidance)."""
    device = next(denoiser.model.parameters()).device
    seen = 0 if shown.eye is None else shown.eye.shape[-1] * shown.eye.shape[-2] // 28**2
    ids = reader.tokens(prompts, seen)
    out: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    even = torch.linspace(1, 1 / steps, steps)
    sigmas = [*(SHIFT * even / (1 + (SHIFT - 1) * even)).tolist(), 0.0]
    for length in sorted({len(row) for row in ids}):
        group = [i for i, row in enumerate(ids) if len(row) == length]
        eye = () if shown.eye is None else pixel_patches(shown.eye[group])
        text = reader.encode(torch.tensor([ids[i] for i in group], device=device), *eye)
        empty = torch.tensor(reader.tokens([" "], seen), device=device).expand(len(group), -1)
        negative = reader.encode(empty, *eye)
        noise = [
            torch.randn(1, shape[0] * shape[1], 64, generator=torch.Generator().manual_seed(seed + i)) for i in group
        ]
        x, beside = torch.cat(noise).to(device), None
        shapes: tuple[Shape, ...] = (shape,)
        if shown.latents is not None:
            latents = shown.latents.float()
            beside = to_tokens(latents.expand(len(prompts), -1, -1, -1)[group])
            shapes = (shape, shape_of(latents))
        for now, then in itertools.pairwise(sigmas):
            t = torch.full((len(group),), now, device=device)
            tokens = x if beside is None else torch.cat([x, beside], 1)
            with_prompt = denoiser(tokens, text, t, shapes).float()
            without = denoiser(tokens, negative, t, shapes).float()
            guided = without + guidance * (with_prompt - without)
            guided = guided * (
                with_prompt.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True).clamp(min=1e-6)
            )
            x = x + (then - now) * guided
        for i, latents in zip(group, from_tokens(x, shape), strict=True):
            out[i] = latents
    return torch.stack(out)


@torch.no_grad()
def answer(reader: Reader, pixels: torch.Tensor, tokens: int = 90) -> list[str]:
    """Greedy captions of pictures (n, 3, h, w) already sized and normalised; no cache, small model."""
    pad = reader.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    end = reader.tokenizer.convert_tokens_to_ids("<|im_end|>")
    question = reader.tokenizer(CAPTION_PROMPT)["input_ids"]
    before = question.index(pad)
    patches, grid = pixel_patches(pixels)
    seen = look(reader.model.model.visual, patches, grid)
    row = [*question[:before], *([pad] * seen.shape[1]), *question[before + 1 :]]
    ids = torch.tensor([row], device=pixels.device).expand(len(pixels), -1)
    done = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    for _ in range(tokens):
        best = reader.model.lm_head(read(reader.model, ids, seen, before, grid)[:, -1]).argmax(-1)
        best = torch.where(done, end, best)
        ids = torch.cat([ids, best[:, None]], 1)
        done |= best == end
        if bool(done.all()):
            break
    return list(reader.tokenizer.batch_decode(ids[:, len(row) :], skip_special_tokens=True))


def show(run: Run, log: Log, reader: Reader, denoiser: Denoiser, vae: Autoencoder, blank: torch.Tensor) -> None:
    """Held-out samples beside the truth, and captions beside theirs."""
    test = Renderer(run.device, 998, "heldout", few=run.tiny)
    truth, indices = test.sheets(run.scale(12, 2))
    rng = random.Random(3)
    characters = characters_of(indices)
    prompts = [grammar.describe(c, rng=rng, style="sheet") for c in characters]
    rows = [truth.float() / 255]
    steps = STEPS if not run.tiny else 2
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
        for mode in (LATENTS, VISION):
            shown = Shown(blank if mode == LATENTS else None)
            latents = draw(reader, denoiser, shape_of(blank), prompts, shown, seed=5, steps=steps)
            rows.append(vae.to_pictures(latents))
    run.picture("sheets", [p for i in range(0, len(prompts), 6) for p in (r[i : i + 6] for r in rows)])
    (run.out / "sheets_prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    rendered, _, scene = test.pictures(test.characters(run.scale(96, 2)), (128, 384), plain=1.0, exact=1.0)
    pixels = F.interpolate(rendered.float(), (392, 140), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
        said = answer(reader, normalised(pixels), tokens=90 if not run.tiny else 3)
    score, lines = 0.0, []
    for i, traits in enumerate(characters_of(scene.indices)):
        wanted = grammar.canonical_dict(
            traits, view=VIEWS[scene.view[i]], pose=POSES[scene.pose[i]], background=BACKGROUNDS[scene.background[i]]
        )
        found = grammar.parse_tags(said[i])
        right = len(set(wanted.items()) & set(found.items()))
        score += 2 * right / max(1, len(wanted) + len(found)) / len(said)
        lines.append(f"said:  {said[i]}\ntruth: {grammar.tags_from_dict(wanted)}\n")
    (run.out / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
    log.write(event="captions", f1=score)
    show_edits(run, log, reader, denoiser, vae)


@torch.no_grad()
def show_edits(run: Run, log: Log, reader: Reader, denoiser: Denoiser, vae: Autoencoder) -> None:
    """Held-out edits of every kind: what was shown, the truth, what was drawn; and what the shipped probe reads in it."""
    pool = EditPool(run, reader, vae, capacity=run.scale(64, 2), chunk=run.scale(64, 2))
    pool.renderer = Renderer(run.device, 994, "heldout", few=run.tiny, filled=0.5)
    judge = probe.load_judge(device=run.device)
    said = []
    for name, edit in EDITS.items():
        indices = pool.renderer.characters(pool.chunk)
        sources = pool.sources(edit, indices)
        truth, _, texts = pool.targets(edit, indices)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
            source = vae.to_latents(sources)
            shape = (edit.target[1] // 16, edit.target[0] // 16)
            shown = Shown(source, normalised(looked_at(sources)))
            drawn = vae.to_pictures(
                draw(reader, denoiser, shape, texts, shown, seed=6, steps=STEPS if not run.tiny else 2)
            )
        wanted = indices.cpu()
        read_in = {"truth": truth.float() / 255, "drawn": drawn}
        scores: dict[str, float] = {}
        for what, pictures in read_in.items():
            if edit.target == (SHEET_SIZE, SHEET_SIZE):
                reading = probe.score_sheets(judge, pictures)
                mask = probe.sheet_mask(wanted)
                right = probe.trait_accuracy(reading.traits, wanted[:, None].expand_as(reading.traits), mask)
                scores |= {what: right, f"{what}_views": probe.view_accuracy(reading.views)}
            else:
                reading = probe.score_images(judge, pictures)
                scores[what] = probe.trait_accuracy(reading.traits, wanted, torch.ones_like(wanted, dtype=torch.bool))
        log.write(event="edits", kind=name, **scores)
        few = slice(0, 6)
        run.picture(
            f"edits_{name.replace(' ', '_')}",
            [sources[few].float() / 255, truth[few].float() / 255, drawn[few].float()],
        )
        said += [name, *texts[:6], ""]
    (run.out / "edits_prompts.txt").write_text("\n".join(said), encoding="utf-8")
