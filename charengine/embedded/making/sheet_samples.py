"""Samples of the sheet model as it trains: sheets as the pipeline draws them, and captions."""

from __future__ import annotations

import itertools
import random

import torch
from torch.nn import functional as F

from charengine.embedded import grammar
from charengine.embedded.captioning import CAPTION_PROMPT
from charengine.embedded.making.clock import Log
from charengine.embedded.making.data import Renderer, characters_of
from charengine.embedded.making.run import Run
from charengine.embedded.making.sheets import LATENTS, VISION, Denoiser, Reader, from_tokens, normalised, to_tokens
from charengine.embedded.making.still import look, pixel_patches, read
from charengine.embedded.making.vae import Autoencoder
from charengine.embedded.shape import SHEET_SIZE
from charengine.embedded.traits import BACKGROUNDS, POSES, VIEWS

GUIDANCE, STEPS, SHIFT = 3.0, 16, 3.0


@torch.no_grad()
def draw(
    reader: Reader,
    denoiser: Denoiser,
    blank: torch.Tensor,
    prompts: list[str],
    mode: int,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> torch.Tensor:
    """Latents of sheets, sampled as the pipeline does (Euler, shifted sigmas, norm-rescaled guidance)."""
    device = blank.device
    ids = reader.tokens(prompts)
    out: list[torch.Tensor] = [blank] * len(prompts)
    even = torch.linspace(1, 1 / steps, steps)
    sigmas = [*(SHIFT * even / (1 + (SHIFT - 1) * even)).tolist(), 0.0]
    for length in sorted({len(row) for row in ids}):
        group = [i for i, row in enumerate(ids) if len(row) == length]
        text = reader.encode(torch.tensor([ids[i] for i in group], device=device))
        negative = reader.encode(torch.tensor(reader.tokens([" "]), device=device)).expand(len(group), -1, -1)
        noise = [
            torch.randn(1, SHEET_SIZE**2 // 256, 64, generator=torch.Generator().manual_seed(seed + i)) for i in group
        ]
        x = torch.cat(noise).to(device)
        given = to_tokens(blank.float()).expand(len(group), -1, -1)
        for now, then in itertools.pairwise(sigmas):
            t = torch.full((len(group),), now, device=device)
            tokens = x if mode == VISION else torch.cat([x, given], 1)
            grids = 1 if mode == VISION else 2
            with_prompt = denoiser(tokens, text, t, grids).float()
            without = denoiser(tokens, negative, t, grids).float()
            guided = without + guidance * (with_prompt - without)
            guided = guided * (
                with_prompt.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True).clamp(min=1e-6)
            )
            x = x + (then - now) * guided
        for i, latents in zip(group, from_tokens(x), strict=True):
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
            rows.append(vae.to_pictures(draw(reader, denoiser, blank, prompts, mode, seed=5, steps=steps)))
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
