"""Draw the images of a cell: every prompt with every seed, the same noise in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.config import SweepSettings
from charengine.models import Diffusion, TextConditioning

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Order:
    """What every cell draws: text conditioning with one row per prompt, the empty negative prompt, paired seeds."""

    prompts: TextConditioning
    negative: TextConditioning
    seeds: tuple[int, ...]


def place_order(diffusion: Diffusion, texts: Sequence[str], seeds: Sequence[int]) -> Order:
    """Encode the prompts once for all cells and free the text encoders."""
    order = Order(diffusion.encode_prompts(list(texts)), diffusion.encode_prompts([""]), tuple(seeds))
    diffusion.unload("text_encoders")
    return order


def draw(diffusion: Diffusion, order: Order, settings: SweepSettings) -> list[list[Image]]:
    """All images of a cell with the U-Net as it stands: one row per prompt, one image per seed."""
    count = len(order.prompts.embeds)
    rows = [prompt for prompt in range(count) for _ in order.seeds]
    images = diffusion.sample(
        TextConditioning(order.prompts.embeds[rows], order.prompts.pooled[rows]),
        TextConditioning(order.negative.embeds[[0] * len(rows)], order.negative.pooled[[0] * len(rows)]),
        seeds=list(order.seeds) * count,
        size=(settings.width, settings.height),
        steps=settings.steps,
        guidance=settings.guidance,
    )
    seeds = len(order.seeds)
    return [images[row * seeds : (row + 1) * seeds] for row in range(count)]
