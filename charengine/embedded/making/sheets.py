"""Trains the sheet model end to end: the denoiser, and the Qwen2.5-VL that reads prompts for it and captions pictures."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from charengine.embedded import grammar
from charengine.embedded.captioning import CAPTION_PROMPT
from charengine.embedded.making.clock import Average, Clock, Log, decayed, finish, read_weights, write_weights
from charengine.embedded.making.data import Refill, Renderer, allow_recompiles, characters_of, sent, sheet_text
from charengine.embedded.making.family import build_transformer, build_vision_language
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.making.heads import TraitHeads
from charengine.embedded.making.run import Run
from charengine.embedded.making.still import look, pixel_patches, read, real_rotations
from charengine.embedded.making.vae import Autoencoder
from charengine.embedded.making.vocabulary import EDIT_PREFIX, EDIT_SUFFIX, build_qwen_tokenizer
from charengine.embedded.shape import SHEET_SIZE
from charengine.embedded.traits import BACKGROUNDS, POSES, TRAITS, VIEWS
from charengine.figures.template import template

CAPTION_SIZES = {(128, 384): (140, 392), (192, 256): (224, 280), (256, 256): (252, 252)}  # rendered: what the VL reads
LENGTH_STEP = 16  # sheet prompts are padded to a multiple of this many tokens
ANSWER = 64  # tokens of the longest caption, rounded up
CAPTION_EVERY = 3  # steps: captions are learnt sooner than sheets, and a third of a step's time went to them
LATENTS, VISION = 0, 1  # how the template conditions: as VAE latents too, or through the VL's eyes alone


class Reader:
    """The VL with its tokenizer and the one template it is shown."""

    def __init__(self, run: Run) -> None:
        self.device = run.device
        self.tokenizer = build_qwen_tokenizer()
        self.model: Any = build_vision_language(run.sizes, self.tokenizer).to(run.device)
        picture = template(SHEET_SIZE, SHEET_SIZE).resize((96, 96), 1).resize((84, 84), 3)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(run.device)
        self.patches, self.grid = pixel_patches(normalised(pixels))
        pads = "<|image_pad|>" * (self.patches.shape[1] // 4)
        before = EDIT_PREFIX + "Picture 1: <|vision_start|>"
        self.before = len(self.tokenizer(before)["input_ids"])
        self.opening = f"{before}{pads}<|vision_end|>"
        self.padding = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.dropped = len(self.tokenizer(EDIT_PREFIX)["input_ids"])  # 64: the pipeline drops as many

    def tokens(self, prompts: list[str]) -> list[list[int]]:
        """Token ids of whole edit prompts."""
        return list(self.tokenizer([self.opening + prompt + EDIT_SUFFIX for prompt in prompts])["input_ids"])

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """What the denoiser reads, (n, tokens, d), of prompts of one length."""
        seen = look(self.model.model.visual, self.patches, self.grid)
        return read(self.model, ids, seen, self.before, self.grid)[:, self.dropped :]


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as CLIP's image processor scales them."""
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(OPENAI_CLIP_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """(n, 16, h, w) to tokens (n, h w / 4, 64), as the pipeline does."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def from_tokens(tokens: torch.Tensor, side: int = SHEET_SIZE // 8) -> torch.Tensor:
    """Inverse of `to_tokens` for square latents."""
    n, _, c = tokens.shape
    half = side // 2
    return tokens.view(n, half, half, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c // 4, side, side)


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
        self.traits = torch.empty(capacity + chunk, len(TRAITS), dtype=torch.long, device=run.device)
        # (mode, padded length): place of each prompt's sheet, and its ids
        self.groups: dict[tuple[int, int], tuple[list[int], list[list[int]]]] = {}
        self.count = 0

    def make(self) -> None:
        """Render one chunk until the pool is full; one sheet in eight has the template's rules."""
        if self.count >= self.capacity:
            return
        pictures, indices = self.renderer.sheets(self.chunk)
        modes = [LATENTS if i % 8 == 7 else VISION for i in range(self.chunk)]
        ruled = torch.tensor([m == LATENTS for m in modes], device=pictures.device)
        pictures = pictures.masked_fill(ruled[:, None, None, None] & self.rules, 0)
        end = self.count + self.chunk
        self.latents[self.count : end] = self.vae.to_latents(pictures)
        self.traits[self.count : end] = indices.to(self.traits.device)
        characters, rng = characters_of(indices), self.renderer.rng
        for _ in range(3):
            for i, tokens in enumerate(self.reader.tokens([sheet_text(c, rng) for c in characters])):
                length = -(-len(tokens) // LENGTH_STEP) * LENGTH_STEP
                places, ids = self.groups.setdefault((modes[i], length), ([], []))
                places.append(self.count + i)
                ids.append(tokens + [self.reader.padding] * (length - len(tokens)))
        self.count = end

    def batch(self, n: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]:
        """Latents (n, 16, 48, 48), ids (n, tokens), mode, traits (n, n_traits): one mode and length throughout."""
        enough = [key for key, (places, _) in self.groups.items() if len(places) >= 2 * n] or list(self.groups)
        mode, length = rng.choices(enough, weights=[len(self.groups[key][0]) for key in enough])[0]
        places, ids = self.groups[mode, length]
        pick = [rng.randrange(len(places)) for _ in range(n if mode == VISION else max(1, n // 2))]
        device = self.blank.device
        at = sent(torch.tensor([places[i] for i in pick]), device)
        return self.latents[at], sent(torch.tensor([ids[i] for i in pick]), device), mode, self.traits[at]


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


class Denoiser:
    """The transformer, its blocks compiled for training on CUDA.

    Real rotations are made once a length: a captured step may not copy from the host.
    """

    def __init__(self, run: Run) -> None:
        self.model: Any = build_transformer(run.sizes).to(run.device)
        self.rotations: dict[tuple[int, int], Any] = {}
        self.blocks: list[Any] = list(self.model.transformer_blocks)  # type: ignore[arg-type]

    def prepare(self) -> None:
        """After weights are loaded."""
        real_rotations(self.model)
        if next(self.model.parameters()).is_cuda:
            allow_recompiles()
            self.blocks = [torch.compile(block, dynamic=True) for block in self.blocks]

    def __call__(self, tokens: torch.Tensor, text: torch.Tensor, sigma: torch.Tensor, grids: int) -> torch.Tensor:
        """Velocity of the first grid's tokens; `grids` says how many 24 x 24 grids `tokens` holds."""
        m = self.model
        x, e = m.img_in(tokens), m.txt_in(m.txt_norm(text))
        temb = m.time_text_embed(sigma, x)
        x, e = x.float(), e.float()  # a precise residual stream
        side, key = SHEET_SIZE // 16, (grids, e.shape[1])
        if key not in self.rotations:
            shapes = [[(1, side, side)] * grids]
            self.rotations[key] = m.pos_embed(shapes, max_txt_seq_len=e.shape[1], device=x.device)
        for block in self.blocks if torch.is_grad_enabled() else m.transformer_blocks:
            e, x = block(
                hidden_states=x, encoder_hidden_states=e, encoder_hidden_states_mask=None, temb=temb,
                image_rotary_emb=self.rotations[key], joint_attention_kwargs={}, modulate_index=None,
            )  # fmt: skip
        x = m.norm_out(x[:, : side * side], temb)
        velocity: torch.Tensor = m.proj_out(x)
        return velocity


def train_sheets(run: Run, minutes: float) -> None:
    """Train denoiser and VL together for `minutes`."""
    device, log = run.device, Log(run.out, "sheets")
    vae = Autoencoder("qwen", run.sizes, device)
    if not vae.load(run.made):
        raise FileNotFoundError(f"no qwen_vae.safetensors in {[str(f) for f in run.made]}: train qwen_vae first")
    vae.model.requires_grad_(False)
    reader, denoiser = Reader(run), Denoiser(run)
    zero_gates(denoiser.model)
    resumed = read_weights(run.sources, "qwen_transformer", denoiser.model) and read_weights(
        run.sources, "qwen_text_encoder", reader.model
    )
    average = Average({"qwen_transformer": denoiser.model, "qwen_text_encoder": reader.model}, 0.999)
    denoiser.prepare()
    clock = Clock(minutes, max_steps=run.max_steps)
    pool = SheetPool(run, reader, vae, capacity=run.scale(100000, 32), chunk=run.scale(256, 8))
    captions = CaptionPool(run, reader, vae, capacity=run.scale(20000, 16), chunk=run.scale(512, 4))
    fill = Clock(run.scale(400, 1) / 600 * min(1.0, minutes / 6))
    while fill.progress < 1 or pool.count < run.scale(1000, 16):
        pool.make()
        if len(captions.answers[128, 384]) < min(run.scale(8000, 8), pool.count // 2):
            captions.make()
    log.write(event="pool", sheets=pool.count, captions=len(captions.answers[128, 384]), seconds_spent=clock.seconds)
    refills = [Refill(pool.make, 0.12), Refill(captions.make, 0.04)]
    heads = TraitHeads(2 * run.sizes.vl_width).to(device)
    groups = decayed(denoiser.model, rate=1e-3) + decayed(reader.model, heads, rate=8e-4)
    optimiser = GraphedOptimiser(groups, clock)
    rng = random.Random(run.seed + 5)
    batch, caption_batch = run.scale(112, 2), run.scale(96, 2)
    empty = torch.tensor(reader.tokens([" "]), device=device)
    given = to_tokens(pool.blank.float())

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)

    def flow_step(
        mode: int, latents: torch.Tensor, ids: torch.Tensor, traits: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        with autocast():
            flow, named = flow_loss(denoiser, reader, heads, latents, ids, traits, given if mode == LATENTS else None)
        (flow + 0.05 * named).backward()
        return flow.detach(), named.detach()

    def caption_step(pixels: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with autocast():
            loss = caption_loss(reader, captions.before, pixels, ids, labels)
        (0.5 * loss).backward()
        return (loss.detach(),)

    flow_steps = {mode: GraphedStep(functools.partial(flow_step, mode), device) for mode in (LATENTS, VISION)}
    caption_steps = GraphedStep(caption_step, device)
    log.write(
        event="start",
        resumed=resumed,
        parameters=sum(p.numel() for p in [*denoiser.model.parameters(), *reader.model.parameters()]),
    )
    while clock.progress < 1:
        latents, ids, mode, traits = pool.batch(batch, rng)
        ids = empty.expand(len(ids), -1) if rng.random() < 0.1 else ids
        flow, named = flow_steps[mode](ids.shape[1], latents, ids, traits)
        if clock.step % CAPTION_EVERY == 0:
            pixels, ids, labels = captions.batch(caption_batch, rng)
            (caption,) = caption_steps(pixels.shape, pixels, ids, labels)
        optimiser.step()
        average.update()
        for refill in refills:
            refill.tick()
        if clock.step % run.every(50) == 0 or clock.step <= 3:
            log.write(
                step=clock.step,
                flow=flow,
                traits=named,
                caption=caption,
                sheets=pool.count,
                progress=clock.progress,
            )
        if run.due("sheets"):
            write_weights(run.out, average.state())
    finish(run.out, log, "sheets", clock, average, batch=batch, minutes=minutes, resumed=resumed)
    times = {mode: flow_steps[mode].milliseconds() for mode in flow_steps}
    log.write(event="milliseconds", flow=times, caption=caption_steps.milliseconds())
    from charengine.embedded.making.sheet_samples import show

    show(run, log, reader, denoiser, vae, pool.blank)


def zero_gates(transformer: Any) -> None:
    """Blocks start as the identity (adaLN-zero), the output at zero."""
    for block in transformer.transformer_blocks:
        for layer in (block.img_mod[1], block.txt_mod[1]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)


def flow_loss(
    denoiser: Denoiser,
    reader: Reader,
    heads: TraitHeads,
    latents: torch.Tensor,
    ids: torch.Tensor,
    traits: torch.Tensor,
    given: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching on one batch, and the trait loss of its prompts; `given` = the template's tokens, or none."""
    text = reader.encode(ids)
    named = heads(torch.cat([text[:, -1], text.mean(1)], -1), traits)
    clean = to_tokens(latents.float())
    noise = torch.randn_like(clean)
    u = torch.sigmoid(torch.randn(len(clean), device=clean.device) * 1.1)
    sigma = 2.0 * u / (1 + u)
    noisy = torch.lerp(clean, noise, sigma[:, None, None])
    tokens = noisy if given is None else torch.cat([noisy, given.expand(len(noisy), -1, -1)], 1)
    velocity = denoiser(tokens, text, sigma, 1 if given is None else 2)
    return F.mse_loss(velocity.float(), noise - clean), named


def caption_loss(
    reader: Reader, before: int, pixels: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the tags, given the picture; the answer is the last `ANSWER` tokens."""
    patches, grid = pixel_patches(pixels)
    seen = look(reader.model.model.visual, patches, grid)
    hidden = read(reader.model, ids, seen, before, grid)
    logits = reader.model.lm_head(hidden[:, -ANSWER - 1 : -1]).float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, -ANSWER:].flatten(), ignore_index=-100)
