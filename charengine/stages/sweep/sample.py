"""Draw the images of a cell: every prompt with every seed, the same noise in every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.config import SweepSettings
from charengine.models import Diffusion, TextConditioning

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class CellInputs:
    """What every cell draws: text conditioning with one row per prompt, the base's negative prompt, paired seeds."""

    prompts: TextConditioning
    negative: TextConditioning
    seeds: tuple[int, ...]

    def of(self, first: int, end: int) -> CellInputs:
        """Some of the prompts."""
        return CellInputs(self.prompts.rows(first, end), self.negative, self.seeds)


def encode_cell_inputs(diffusion: Diffusion, texts: Sequence[str], seeds: Sequence[int]) -> CellInputs:
    """Encode the prompts, as the base model's family is prompted, once for all cells and free the text encoders."""
    usage = diffusion.usage
    prompts = diffusion.encode_prompts([usage.prompt(text) for text in texts])
    inputs = CellInputs(prompts, diffusion.encode_prompts([usage.negative_prompt]), tuple(seeds))
    diffusion.unload("text_encoders")
    return inputs


def draw(
    diffusion: Diffusion, inputs: CellInputs, settings: SweepSettings, columns: Sequence[int] | None = None
) -> list[list[Image]]:
    """Images of a cell with the U-Net as it stands: one row per prompt, one image per seed.

    Args:
        diffusion: the base model, an adapter on it or not.
        inputs: prompts and seeds.
        settings: size, steps, guidance.
        columns: indices of the seeds to draw; None: all of them.
    """
    seeds = inputs.seeds if columns is None else [inputs.seeds[column] for column in columns]
    count = len(inputs.prompts.embeds)
    rows = [prompt for prompt in range(count) for _ in seeds]
    images = diffusion.sample(
        TextConditioning(inputs.prompts.embeds[rows], inputs.prompts.pooled[rows]),
        TextConditioning(inputs.negative.embeds[[0] * len(rows)], inputs.negative.pooled[[0] * len(rows)]),
        seeds=list(seeds) * count,
        size=(settings.width, settings.height),
        steps=settings.steps,
        guidance=settings.guidance,
        solver=settings.solver,
        guided=(settings.guided_above, settings.guided_below or math.inf),
    )
    return [images[row * len(seeds) : (row + 1) * len(seeds)] for row in range(count)]
