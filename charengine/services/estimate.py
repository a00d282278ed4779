"""How long a profile will take on this machine, before it has run: an estimate, stage by stage.

Fitted to `benchmarks/results/full_pipeline.json` (an H200 under a 12 GiB cap). A stage's time there is cut into arithmetic (its
operations at `SHARE` of the card's published bf16 rate), memory traffic (what remains), and what depends on neither. Another card
takes the first in proportion to its published bf16 rate and the second in proportion to its memory bandwidth; streamed weights pass
through its bus. A card that is not listed is measured for a moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.config import Profile, SweepSettings
from charengine.together import steps_of_drafts

if TYPE_CHECKING:
    from charengine.models.memory import MemoryPlan
    from charengine.models.survey import Survey

SHARE = 0.6  # of the published rate that large bf16 products reach
BUS = 25.0  # GB/s of PCIe 4.0 x16 with page-locked memory
QUICK_PROMPTS, FULL_PROMPTS = 4, 10  # of the sweep's built-in sets (likeness/prompts.py)

# dense bf16 (fp16 where a card has no bf16) tensor rate with float32 sums, TFLOP/s, and memory bandwidth, GB/s, as commonly listed;
# only the H200's were measured against
CARDS = {
    "H200": (989, 4800), "H100 PCIe": (756, 2000), "H100": (989, 3350), "GH200": (989, 4000), "B200": (2250, 8000), "A100": (312, 1935),
    "L40S": (362, 864), "L40": (181, 864), "L4": (121, 300), "A40": (150, 696), "A10": (125, 600), "T4": (65, 320), "V100": (125, 900),
    "RTX 6000 Ada": (364, 960), "RTX A6000": (155, 768), "RTX A5000": (111, 768), "RTX A4000": (77, 448), "RTX PRO 6000": (504, 1792),
    "RTX 5090": (210, 1792), "RTX 5080": (113, 960), "RTX 5070 Ti": (88, 896), "RTX 5070": (62, 672), "RTX 5060 Ti": (47, 448),
    "RTX 4090": (165, 1008), "RTX 4080": (98, 717), "RTX 4070 Ti": (80, 504), "RTX 4070": (58, 504), "RTX 4060 Ti": (44, 288),
    "RTX 4060": (30, 272), "RTX 3090": (71, 936), "RTX 3080 Ti": (68, 912), "RTX 3080": (60, 760), "RTX 3070": (41, 448), "RTX 3060": (26, 360),
}  # fmt: skip
MEASURED_ON = CARDS["H200"]
REFERENCE_BUS = 54.7  # GB/s measured there


@dataclass(frozen=True)
class Card:
    """A GPU's bf16 rate (TFLOP/s, as published), memory bandwidth and bus (GB/s), and where they come from."""

    tflops: float
    bandwidth: float
    bus: float = BUS
    source: str = ""


@dataclass(frozen=True)
class StageTime:
    """A stage's estimated seconds, and what they are made of."""

    stage: str
    seconds: float
    what: str


def card_called(name: str) -> Card | None:
    """The published figures of a card, by the longest listed name its own contains; None if it is not listed."""
    known = [listed for listed in CARDS if listed.lower() in name.lower()]
    if not known:
        return None
    listed = max(known, key=len)
    bus = REFERENCE_BUS if listed in ("H200", "H100", "GH200", "B200") else BUS
    return Card(*CARDS[listed], bus, f"published rate of the {listed}")


def measured_card() -> Card | None:
    """A card that is not listed, measured for a moment: one large product and one large copy; None without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    size, times = 4096, 8
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    tflops = times * 2 * size**3 / _seconds(lambda: [a @ a for _ in range(times)]) / 1e12
    block = torch.empty(2**27, dtype=torch.uint8, device="cuda")
    bandwidth = times * 2 * block.numel() / _seconds(lambda: [block.clone() for _ in range(times)]) / 1e9
    return Card(tflops / SHARE, bandwidth, source="measured: one product, one copy")


def _seconds(work: Callable[[], object]) -> float:
    import torch

    work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


def estimate(profile: Profile, look: Survey, card: Card) -> list[StageTime]:
    """Seconds of every stage of one character, without the first reading of files from disk."""
    return [
        _sheet(profile, look, card),
        StageTime("crop", 1.0, "three views"),
        _caption(profile, card),
        _train(profile, card),
        _sweep(profile, look, card),
        StageTime("report", 0.9, ""),
    ]


def _time(card: Card, tflop: float, reference_s: float, fixed_s: float = 0.0) -> float:
    """Seconds of work that took `reference_s` on the card measured: its operations, its memory traffic, and the rest."""
    arithmetic = tflop / (SHARE * MEASURED_ON[0])
    traffic = max(0.0, reference_s - fixed_s - arithmetic)
    return fixed_s + tflop / (SHARE * card.tflops) + traffic * MEASURED_ON[1] / card.bandwidth


# --- stages; every literal is measured (full_pipeline.json) or counted --------------------------------------------------

TOKEN_SECONDS = 55e-6  # of one token in one forward of the edit transformer: 1.247 s for 2 × 11,340
TOKEN_TFLOP = 0.041  # 20.4 G multiply-adds a token
LORA_SHARE = 0.1  # that a Lightning LoRA beside the weights adds: 0.688 against 0.623 s
TEXT_TOKENS = 1100
ENCODE_SECONDS = 3.7  # prompt and template through Qwen2.5-VL, and placing the transformer
DECODE_SECONDS = 1.1


def _sheet(profile: Profile, look: Survey, card: Card) -> StageTime:
    from charengine.models.lightning import fused_steps

    sheet, plan, loras = profile.sheet, look.plan, look.loras
    tokens = sheet.width * sheet.height // 256 + TEXT_TOKENS + (4096 if sheet.conditioning == "latents" else 0)
    fused = fused_steps(look.stock.found["edit"].path.name) if "edit" in look.stock.found else 0

    def drawing(steps: int) -> float:
        fast = bool(fused) or (loras.lightning is not None and steps <= 8)
        count = fused or (loras.lightning_steps if fast else steps)
        guided = (
            0 if fast or sheet.guidance <= 1 else _guided(count, sheet.width * sheet.height // 256, sheet.guided_above)
        )
        return (count + guided) * _forward(tokens, card, plan, with_lora=fast and not fused) + _around(card)

    final, draft = drawing(sheet.steps), drawing(drafts) if (drafts := steps_of_drafts(sheet)) < sheet.steps else 0.0
    more = f"; a further candidate {_short(draft or final)}" if sheet.candidates > 1 else ""
    parts = f"one draft {_short(draft)}, one sheet {_short(final)}" if draft else f"one sheet of {sheet.steps} steps"
    return StageTime("sheet", final + draft, parts + more)


def _guided(steps: int, tokens: int, above: float) -> int:
    """How many of a sheet's steps have more noise than `above`, by Qwen-Image's own schedule."""
    shift = math.exp(0.5 + (0.9 - 0.5) / (8192 - 256) * (tokens - 256))
    noise = [shift / (shift + steps / (steps - step) - 1) for step in range(steps)]
    return sum(level > above for level in noise)


def _forward(tokens: int, card: Card, plan: MemoryPlan | None, *, with_lora: bool) -> float:
    """One pass of the edit transformer; streamed weights are copied meanwhile, so the slower of the two counts."""
    work = _time(card, tokens * TOKEN_TFLOP, tokens * TOKEN_SECONDS) * (1 + LORA_SHARE * with_lora)
    streamed = 0.0 if plan is None else plan.transformer.streamed * plan.transformer.part.block / 1e9
    return max(work, streamed / card.bus)


def _around(card: Card) -> float:
    return ENCODE_SECONDS * REFERENCE_BUS / card.bus + _time(card, 0.0, DECODE_SECONDS)


CAPTION_TOKENS = 120
CAPTION_FIXED = 1.5  # placing the model, and the tokens before one is recorded
PICTURE_SECONDS = 0.16  # a picture read, before the first token
TOKEN_SECONDS_OF_ALL = 0.028  # a recorded token of several pictures at once: unpacking 7 G weights, and reading them


def _caption(profile: Profile, card: Card) -> StageTime:
    if profile.caption.captioner == "wd14":
        return StageTime("caption", 5.0, "WD14 on the CPU")
    seconds = CAPTION_FIXED + 3 * _a_picture(card) + CAPTION_TOKENS * _a_token(card)
    return StageTime("caption", seconds, f"three views at once, {CAPTION_TOKENS} tokens each")


def _a_picture(card: Card) -> float:
    """Seconds that Qwen2.5-VL takes to see a picture and its question: 2 operations a weight and token, 1,344 tokens."""
    return _time(card, 21.0, PICTURE_SECONDS)


def _a_token(card: Card) -> float:
    """Seconds that Qwen2.5-VL takes for a token of several pictures at once, whole on the GPU."""
    return _time(card, 0.0, TOKEN_SECONDS_OF_ALL)


LESSON_STEPS = 20  # of a picture that lessons are taken from
VIEW_MEGAPIXELS = 0.3125  # of a view cut from a sheet of 1536×1024
STEP_SECONDS = 0.100  # three views, bf16, one CUDA graph
START_SECONDS = 20.0  # loading, trying plans, the base's own loss; 6 where the plan is remembered
FORWARD_TFLOP = 6.76  # of the U-Net at one megapixel
PASSES = 3.15  # forward, backward to the inputs and to the adapter, 15 % of the blocks again


def _train(profile: Profile, card: Card) -> StageTime:
    train, crop = profile.train, profile.crop
    area = (
        crop.bucket_area / 2**20
        if crop.upscale
        else min(crop.bucket_area / 2**20, VIEW_MEGAPIXELS * profile.sheet.width / 1536)
    )

    def step(megapixels: float) -> float:
        return _time(card, FORWARD_TFLOP * PASSES * megapixels, STEP_SECONDS * megapixels / (3 * VIEW_MEGAPIXELS))

    a_step = step((train.batch or 3) * train.accumulate * area)
    lessons = train.steps // 2 if train.distill else 0
    seconds = START_SECONDS + (train.steps - lessons) * a_step
    what = f"{train.steps - lessons} steps of {1000 * a_step:.0f} ms, {START_SECONDS:.0f} s to start"
    if lessons:
        size = train.distill_size**2 / 2**20
        a_lesson, drawn = step(train.distill_batch * size), train.distill * _drawing(card, size, 3 * LESSON_STEPS)
        seconds += lessons * a_lesson + drawn
        what += f"; {lessons} lessons of {1000 * a_lesson:.0f} ms from {train.distill} pictures in {_short(drawn)}"
    return StageTime("train", seconds, what)


IMAGE_SECONDS = 0.645  # 832×1216, 20 steps, guided; drawn and decoded
IMAGE_SHARE = 0.91  # of it that the steps take
IMAGE_MEGAPIXELS = 832 * 1216 / 2**20
MERGED_SECONDS = 0.05  # of each picture: an adapter is put on for every four
PREPARED_SECONDS = 0.06  # of each picture whose traits are read, by the processor beside the GPU
CHANGES_SECONDS = 20.0  # models put on the GPU in turn, prompts encoded, pictures stored
WORD_PICTURES, WORD_READINGS = 8, 11  # drawn and read to find the words, and the four scenes


def _sweep(profile: Profile, look: Survey, card: Card) -> StageTime:
    sweep, usage = profile.sweep, look.usage
    images, area = sweep_pictures(sweep, profile.train.checkpoints), sweep.width * sweep.height / 2**20
    steps, guided = usage.steps(sweep.steps), usage.guidance(sweep.guidance) > 1
    passes = steps * (2 if guided else 1)
    an_image = _drawing(card, area, passes)
    readings = WORD_READINGS + (images if sweep.traits == "end" else 0)
    reading = readings * (PREPARED_SECONDS + _a_picture(card))
    seconds = (images + WORD_PICTURES) * (an_image + MERGED_SECONDS) + reading + CHANGES_SECONDS
    what = f"{images} pictures of {an_image:.1f} s and {WORD_PICTURES} for the words, traits read in {_short(reading)}"
    return StageTime("sweep", seconds, what)


def _drawing(card: Card, megapixels: float, passes: int) -> float:
    """Seconds a picture."""
    reference = IMAGE_SECONDS * megapixels / IMAGE_MEGAPIXELS * (1 - IMAGE_SHARE + IMAGE_SHARE * passes / 40)
    return _time(card, FORWARD_TFLOP * megapixels * passes, reference)


def sweep_pictures(sweep: SweepSettings, checkpoints: int) -> int:
    """How many pictures a sweep draws at most: every cell with every prompt and seed, of a race no more than its budget.

    Args:
        sweep: strengths, prompts, seeds.
        checkpoints: that the training keeps.
    """
    prompts = len(sweep.prompts) or (FULL_PROMPTS if sweep.prompt_set == "full" else QUICK_PROMPTS)
    cells = 1 + len([s for s in sweep.strengths if s > 0]) * min(sweep.checkpoints, checkpoints)
    whole = cells * prompts * sweep.seeds
    return min(whole, sweep.pictures) if sweep.design == "race" else whole


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def describe(times: list[StageTime], card: Card) -> list[str]:
    """Lines for the doctor: minutes a stage, their sum, and how they were come by."""
    lines = [f"{time.stage:8} {time.seconds / 60:6.1f} min{f'  ({time.what})' if time.what else ''}" for time in times]
    total = sum(time.seconds for time in times)
    return [
        *lines,
        f"{'in all':8} {total / 60:6.1f} min for one character",
        f"an estimate: an H200's measured times, scaled by {card.tflops:.0f} TFLOP/s bf16 and {card.bandwidth:.0f} GB/s of memory "
        f"({card.source}), {card.bus:.0f} GB/s of bus; reading the files from disk the first time comes on top",
    ]
