"""Big samples of adapters: every cell of a grid, each picture read by the engine's own metrics and by a judge.

`adapter_truth.py` draws them, one JSON a character and recipe, and makes its tables from them.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from charengine.adapter.network import apply_adapter
from charengine.config import Character, Profile
from charengine.embedded import grammar, probe
from charengine.embedded.traits import COLUMN, VIEWS, from_indices, sample_indices, visible_mask
from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores
from charengine.likeness.prompts import FULL, QUICK, SweepPrompt, classify
from charengine.likeness.scoring import References, match_grid, score_cell
from charengine.models import Models, load
from charengine.pictures import open_image
from charengine.profiles.loading import load_profile
from charengine.records import AdapterRecord, DatasetRecord
from charengine.run.workspace import complete
from charengine.stages.caption import caption_views
from charengine.stages.crop import crop_views
from charengine.stages.sheet.draw import draw_sheet
from charengine.stages.sweep.sample import draw, encode_cell_inputs
from charengine.stages.sweep.sweep import spread
from charengine.stages.train.loop import train_adapter
from charengine.store import Store
from charengine.writing import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

RECIPES = {
    "default": (),
    "under": ("train.steps=60",),
    "overfit": ("train.steps=1200", "train.learning_rate=0.003"),
}
STRENGTHS = (0.6, 0.8, 1.0, 1.2, 1.4)
PROMPTS = tuple(classify(template) for template in FULL if "{subject}" in template)
QUICK_ROWS = [[prompt.template for prompt in PROMPTS].index(template) for template in QUICK]
SPLIT_SEED = 11
SIDES = [COLUMN["right_item"], COLUMN["left_item"]]


class Judge(Protocol):
    """Reads pictures: traits (n, traits) and views (n,), as indices into the embedded vocabulary."""

    def __call__(self, images: Sequence[Image]) -> probe.Reading:
        """One reading for all pictures."""


def shipped_judge(device: str) -> Judge:
    """The package's own probe. The product may use it, so it is no independent judge of what the product tunes with it."""
    judge = probe.load_judge(device=device)
    return lambda images: probe.score_images(judge, probe.to_tensor(list(images)))


# A second judge (other architecture, seed and data, never imported by the product) has its place here; training one takes a
# GPU. Tables name the judge they were made with.
JUDGES: dict[str, Callable[[str], Judge]] = {"shipped": shipped_judge}


@dataclass(frozen=True)
class Sample:
    """What `draw_sample` wrote, ready to be asked.

    Attributes:
        data: the JSON.
        grid: every drawn cell as (step, strength), strength 0 first.
    """

    data: dict[str, Any]

    @cached_property
    def grid(self) -> list[tuple[int, float]]:
        """Every drawn cell as (step, strength), strength 0 first."""
        return [(cell["step"], cell["strength"]) for cell in self.data["cells"]]

    @cached_property
    def seeds(self) -> int:
        """Seeds of every cell."""
        return len(self.data["seeds"])

    def scores(self, cell: int, rows: Sequence[int], seeds: Sequence[int]) -> CellScores:
        """The engine's scores of a cell, had it drawn these prompts (rows of PROMPTS) with these seeds (indices)."""
        there = self._there(rows, seeds)
        match = self._read(cell, "match")[there][:, :, list(rows)]
        own = match[torch.arange(len(rows)), :, torch.arange(len(rows))]
        is_view = torch.tensor([PROMPTS[row].kind == "view" for row in rows])
        nan = torch.full((len(rows), len(seeds)), float("nan"))
        alike = self._read(cell, "alike")[list(rows)][:, list(seeds)][:, :, list(seeds)]
        between = len(seeds) * (len(seeds) - 1)
        variety = 1 - (alike.sum(dim=(1, 2)) - alike.diagonal(dim1=1, dim2=2).sum(dim=1)) / max(between, 1)
        return CellScores(
            identity=self._read(cell, "identity")[there],
            adherence=own,
            margin=own - (match.sum(dim=2) - own) / max(len(rows) - 1, 1),
            diversity=variety.masked_fill(is_view | (between == 0), float("nan")),
            copying=self._read(cell, "copying")[there].masked_fill(is_view[:, None], float("nan")),
            leak=nan,
            class_identity=nan,
        )

    def scale(self, rows: Sequence[int], seeds: Sequence[int]) -> metrics.Scale:
        """Strength 0 with these prompts and seeds, and the sheet's own views."""
        return metrics.Scale(base=self.scores(0, rows, seeds), ceiling=self.data["ceiling"])

    def truth(self, cell: int, seeds: Sequence[int]) -> float:
        """Harmonic mean of what the judge sees of the character, from base model to sheet, and adherence kept."""
        return metrics.score(self.traits(cell, seeds), self.kept(cell, seeds))

    def traits(self, cell: int, seeds: Sequence[int]) -> float:
        """Share of the way from the base model's traits to the sheet's."""
        zero = self._mean(0, "traits", seeds)
        return (self._mean(cell, "traits", seeds) - zero) / max(self.data["sheet_traits"] - zero, 0.05)

    def kept(self, cell: int, seeds: Sequence[int]) -> float:
        """Adherence kept, over all prompts."""
        rows = range(len(PROMPTS))
        margins = [float(self.scores(one, rows, seeds).margin.mean()) for one in (cell, 0)]
        return margins[0] / max(margins[1], metrics.MIN_SPAN)

    def rate(self, cell: int, name: str, kinds: Sequence[str] = ("view", "scene")) -> float:
        """Mean of what the judge read in a cell, over all seeds and prompts of these kinds."""
        rows = [row for row, prompt in enumerate(PROMPTS) if prompt.kind in kinds]
        return float(self._read(cell, name)[rows].mean())

    def sides(self, cell: int) -> tuple[float, float]:
        """Items bound to a side: found on that very side, and there to be found."""
        return float(self._read(cell, "sides_right").sum()), float(self._read(cell, "sides").sum())

    def _mean(self, cell: int, name: str, seeds: Sequence[int]) -> float:
        return float(self._read(cell, name)[:, list(seeds)].mean())

    def _read(self, cell: int, name: str) -> torch.Tensor:
        return torch.tensor(self.data["cells"][cell][name], dtype=torch.float64)

    @staticmethod
    def _there(rows: Sequence[int], seeds: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(list(rows))[:, None], torch.tensor(list(seeds))[None]


def draw_sample(
    index: int, recipe: str, *, split: str, seeds: int, device: str, judge: str, overrides: Sequence[str], path: Path
) -> None:
    """Train an adapter of one character and write its sample to `path`.

    Args:
        index: of the character in its split.
        recipe: of RECIPES.
        split: of `traits.sample_indices`.
        seeds: pictures of each prompt in each cell.
        device: where it is done.
        judge: of JUDGES.
        overrides: settings, after the recipe's.
        path: a JSON file; written when all is done.
    """
    wanted = sample_indices(index + 1, torch.Generator().manual_seed(SPLIT_SEED), split)[index:]
    text = grammar.describe(from_indices(wanted)[0], rng=random.Random(index), style="prompt")
    profile = load_profile("embedded", [f"models.device={device}", *RECIPES[recipe], *overrides])
    models, read = load(profile), JUDGES[judge](device)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        dataset, training = _train(text, index, profile, models, store, Path(folder) / "state")
        trained = time.perf_counter()
        drawing = _Drawing(
            profile,
            models,
            References(dataset.views, models.embedder, store, dataset.trained_extras),
            training,
            wanted,
            read,
            seeds,
            index,
        )
        cells = drawing.cells(store)
        views = [open_image(store.get(view.image)) for view in dataset.views.views]
    pictures = len(cells) * seeds * len(PROMPTS)
    data = {
        "index": index,
        "recipe": recipe,
        "split": split,
        "judge": judge,
        "prompt": text,
        "sheet_traits": _sheet_traits(read, views, wanted),
        "ceiling": drawing.references.ceiling(),
        "prompts": [prompt.template for prompt in PROMPTS],
        "seeds": list(drawing.seeds),
        "checkpoints": [
            {"step": one.step, "loss": one.loss, "validation_loss": one.validation_loss} for one in training.checkpoints
        ],
        "cells": cells,
        "seconds": {"train": trained - start, "picture": (time.perf_counter() - trained) / pictures},
    }
    write_atomically(path, json.dumps(data).encode())


class _Drawing:
    """Pictures of one adapter, cell by cell, and what the engine and the judge read in them."""

    def __init__(
        self,
        profile: Profile,
        models: Models,
        references: References,
        training: AdapterRecord,
        wanted: torch.Tensor,
        read: Judge,
        seeds: int,
        index: int,
    ) -> None:
        self.profile, self.models, self.references, self.training = profile, models, references, training
        self.wanted, self.read = wanted, read
        self.seeds = tuple(range(42 + index, 42 + index + seeds))
        texts = [prompt.to_draw(training.trigger, training.class_noun) for prompt in PROMPTS]
        self.inputs = encode_cell_inputs(models.diffusion, texts, self.seeds)

    def cells(self, store: Store) -> list[dict[str, Any]]:
        """Strength 0, then every checkpoint at every strength."""
        found = [self._cell(0, 0.0)]
        for checkpoint in spread(self.training.checkpoints, self.profile.sweep.checkpoints):
            applied = apply_adapter(self.models.diffusion.unet(), store.get(checkpoint.adapter))
            for strength in STRENGTHS:
                applied.set_strength(strength)
                found.append(self._cell(checkpoint.step, strength))
            applied.remove()
        return found

    def _cell(self, step: int, strength: float) -> dict[str, Any]:
        images = draw(self.models.diffusion, self.inputs, self.profile.sweep)
        flat = [image for row in images for image in row]
        shape = (len(PROMPTS), len(self.seeds))
        scores = score_cell(images, PROMPTS, self.training.class_noun, self.references)
        texts = [prompt.to_score(self.training.class_noun) for prompt in PROMPTS]
        assert scores.layout is not None
        layout = metrics.standardise(torch.nan_to_num(scores.layout).flatten(0, 1)).reshape(*shape, -1)
        return {
            "step": step,
            "strength": strength,
            "identity": _rounded(scores.identity),
            "copying": _rounded(scores.copying.nan_to_num()),
            "alike": _rounded(torch.einsum("psd,ptd->pst", layout, layout)),
            "match": _rounded(match_grid(flat, texts, self.references.embedder).reshape(*shape, -1)),
            **self._judged(flat, shape),
        }

    def _judged(self, flat: Sequence[Image], shape: tuple[int, int]) -> dict[str, Any]:
        reading, wanted = self.read(flat), self.wanted.expand(len(flat), -1)
        named = torch.tensor([_view(prompt) for prompt in PROMPTS]).repeat_interleave(shape[1])
        mask = visible_mask(wanted, named)
        right = (reading.traits == wanted) & mask
        sides = mask[:, SIDES] & (wanted[:, SIDES] != 0)
        return {
            "traits": _rounded((right.sum(dim=1) / mask.sum(dim=1)).reshape(shape)),
            "sides_right": _rounded((right[:, SIDES] & sides).sum(dim=1).reshape(shape)),
            "sides": _rounded(sides.sum(dim=1).reshape(shape)),
            "view": _rounded((reading.views == named).reshape(shape)),
        }


def _train(
    text: str, index: int, profile: Profile, models: Models, store: Store, state: Path
) -> tuple[DatasetRecord, AdapterRecord]:
    """The pipeline from a sentence to its checkpoints."""
    character = complete(Character(name=f"character {index}", prompt=text, seed=42 + index), models)
    sheet = draw_sheet(character, profile.sheet, models.editor, store, captioner=models.captioner)
    dataset = caption_views(crop_views(sheet, profile.crop, store), character, profile.caption, models.captioner, store)
    return dataset, train_adapter(dataset, profile.train, models.diffusion, store, seed=42 + index, state_dir=state)


def _sheet_traits(read: Judge, views: Sequence[Image], wanted: torch.Tensor) -> float:
    """What the judge sees of the character in the sheet's own views."""
    traits = torch.cat([read([view]).traits for view in views])
    everywhere = wanted.expand(len(views), -1)
    return probe.trait_accuracy(traits, everywhere, visible_mask(everywhere, torch.arange(len(views))))


def _view(prompt: SweepPrompt) -> int:
    """The view a prompt names; the front when it names none."""
    return VIEWS.index(prompt.view) if prompt.view else 0


def _rounded(values: torch.Tensor) -> Any:
    return torch.round(values.double(), decimals=5).tolist()
