"""What a reader sees of the described traits in the pictures of a sweep, which the pick counts beside identity.

Reading costs next to nothing where the reader is small, so the race knows it in every round. Where it is Qwen2.5-VL, which
takes the picture model's place in memory, all pictures are read once the last is drawn (`sweep.traits`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from charengine.language.phrases import trait_phrases
from charengine.likeness.prompts import SweepPrompt
from charengine.models import TraitReader

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class TraitReading:
    """A reader, and the phrases that it is asked about; not empty."""

    reader: TraitReader
    traits: tuple[str, ...]
    class_noun: str

    def shares(self, images: Sequence[Image]) -> torch.Tensor:
        """(n,) of each picture, the share of the traits that it shows, of those that it can tell; NaN where it can tell none."""
        rows = self.reader.shown(images, self.traits, self.class_noun)
        told = [[float(answer) for answer in row if answer is not None] for row in rows]
        return torch.tensor([sum(row) / len(row) if row else math.nan for row in told])

    def of_cell(self, images: Sequence[Sequence[Image]], prompts: Sequence[SweepPrompt]) -> torch.Tensor:
        """(prompts, seeds) of a row of pictures per prompt; NaN for class prompts, which show anybody."""
        return self.of_cells([images], prompts)[0]

    def of_cells(
        self, cells: Sequence[Sequence[Sequence[Image]]], prompts: Sequence[SweepPrompt]
    ) -> list[torch.Tensor]:
        """As `of_cell`, of several, all read at once: a large reader gets its next pictures ready while it reads."""
        asked = [row for row, prompt in enumerate(prompts) if prompt.kind != "class"]
        shown = [torch.full((len(prompts), len(images[0])), math.nan) for images in cells]
        if asked:
            read = self.shares([image for images in cells for row in asked for image in images[row]])
            each = read.split([len(asked) * len(images[0]) for images in cells])
            for told, found in zip(each, shown, strict=True):
                found[asked] = told.reshape(len(asked), -1)
        return shown

    def of_views(self, views: Sequence[Image]) -> float | None:
        """The mean share in the sheet's own views; None where none of them can tell any."""
        found = float(self.shares(views).nanmean())
        return None if math.isnan(found) else found


def described_traits(description: str, trigger: str, class_noun: str) -> tuple[str, ...]:
    """The phrases of a description that can be asked about one by one."""
    return tuple(trait_phrases(description.replace(trigger, " ") if trigger else description, class_noun))
