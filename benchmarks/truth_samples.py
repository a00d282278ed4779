"""Big samples of adapters: every cell of a grid, each picture read by the engine's own metrics and by a judge.

`adapter_truth.py` draws them, one JSON a character and recipe, and makes its tables from them.
"""

from __future__ import annotations

import json
import platform
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as pil
from truth_judges import JUDGES, Judge
from truth_recipes import RECIPES, Recipe, last_checkpoint, redrawn_views, rendered_views
from truth_renders import rendered_margins

from charengine.adapter.merging import AdapterMerger
from charengine.config import Character, Profile
from charengine.embedded import grammar, probe
from charengine.embedded.traits import COLUMN, VIEWS, from_indices, sample_indices, visible_mask
from charengine.language.phrases import trait_phrases
from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores
from charengine.likeness.prompts import FULL, QUICK, SweepPrompt, classify
from charengine.likeness.scoring import References, match_grid, score_cell
from charengine.models import Models, load
from charengine.pictures import open_image
from charengine.profiles.loading import load_profile
from charengine.records import AdapterRecord, ExtraView, ViewsRecord
from charengine.run.workspace import complete
from charengine.stages.caption import caption_views
from charengine.stages.crop import crop_views
from charengine.stages.expand.expand import expand_views
from charengine.stages.sheet.draw import draw_sheet
from charengine.stages.sweep.sample import draw, encode_cell_inputs
from charengine.stages.sweep.session import spread
from charengine.stages.sweep.traits import TraitReading, described_traits
from charengine.stages.sweep.words import said_of, shares_of
from charengine.stages.train.loop import train_adapter
from charengine.store import Store
from charengine.writing import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

STRENGTHS = (0.6, 0.8, 1.0, 1.2, 1.4)
MILD = 0.4  # a strength at which words lose nothing
PROMPTS = tuple(classify(template) for template in FULL if "{subject}" in template)
QUICK_ROWS = [[prompt.template for prompt in PROMPTS].index(template) for template in QUICK]
SPLIT_SEED = 11
SIDES = [COLUMN["right_item"], COLUMN["left_item"]]
JUDGED = ("traits", "sides_right", "sides", "view", "faces")


@dataclass(frozen=True)
class Sample:
    """What `draw_sample` wrote, ready to be asked.

    Attributes:
        data: the JSON.
        judge: of JUDGES, whose readings are asked for.
        order: of the seeds; empty: as they were drawn.
    """

    data: dict[str, Any]
    judge: str = "shipped"
    order: tuple[int, ...] = ()

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
            shown=self._read(cell, "shown")[there],
        )

    def scale(self, rows: Sequence[int], seeds: Sequence[int]) -> metrics.Scale:
        """Strength 0 with these prompts and seeds, and the sheet's own views."""
        return metrics.Scale(self.scores(0, rows, seeds), self.data["ceiling"], self.data["sheet_shown"])

    def truth(self, cell: int, seeds: Sequence[int]) -> float:
        """Harmonic mean of what the judge sees of the character, from base model to sheet, and adherence."""
        return metrics.score(self.traits(cell, seeds), self.adheres(cell, seeds))

    def traits(self, cell: int, seeds: Sequence[int]) -> float:
        """Share of the way from the base model's traits to the sheet's."""
        zero = self._mean(0, "traits", seeds)
        return (self._mean(cell, "traits", seeds) - zero) / max(self.sheet_traits - zero, 0.05)

    @property
    def sheet_traits(self) -> float:
        """What the judge sees of the character in the sheet's own views."""
        return float(self.data["sheet_traits"][self.judge])

    def told(self, name: str) -> Sample:
        """The sample with one cell more, the last: "recommended" (last checkpoint at 1, prompt with words) or "described" (base)."""
        cell = {"step": -1, "strength": 1.0, "judges": self.data[name]}
        return replace(self, data={**self.data, "cells": [*self.data["cells"], cell]})

    def kept(self, cell: int, seeds: Sequence[int]) -> float:
        """Adherence kept of the base model's, over all prompts; of somebody else, see `truth_renders`."""
        return self._margin(cell, seeds) / max(self._margin(0, seeds), metrics.MIN_SPAN)

    def adheres(self, cell: int, seeds: Sequence[int]) -> float:
        """Adherence as a share of what true pictures of this very character have, over all prompts."""
        rendered = float(torch.tensor(self.data["rendered_margins"], dtype=torch.float64).mean())
        return self._margin(cell, seeds) / max(rendered, metrics.MIN_SPAN)

    def _margin(self, cell: int, seeds: Sequence[int]) -> float:
        return float(self.scores(cell, range(len(PROMPTS)), seeds).margin.mean())

    def rate(
        self, cell: int, name: str, kinds: Sequence[str] = ("view", "scene"), seeds: Sequence[int] | None = None
    ) -> float:
        """Mean of what the judge read in a cell, over prompts of these kinds and all seeds, or some."""
        rows = [row for row, prompt in enumerate(PROMPTS) if prompt.kind in kinds]
        return float(self._read(cell, name)[rows][:, list(seeds or range(self.seeds))].mean())

    def sides(self, cell: int, seeds: Sequence[int] | None = None) -> tuple[float, float]:
        """Items bound to a side: found on that very side, and there to be found."""
        columns = list(seeds or range(self.seeds))
        right, there = (float(self._read(cell, name)[:, columns].sum()) for name in ("sides_right", "sides"))
        return right, there

    def variety_kept(self, cell: int, seeds: Sequence[int]) -> float:
        """Variety between seeds in scenes, as a share of strength 0's, which draws somebody else with every seed."""
        own, base = (metrics.mean(self.scores(one, range(len(PROMPTS)), seeds).diversity) for one in (cell, 0))
        return own / base

    @property
    def described_variety(self) -> float:
        """The same of the base model told everything: what is left of variety when it draws this one character."""
        base = metrics.mean(self.scores(0, range(len(PROMPTS)), range(self.seeds)).diversity)
        return float(self.data["described"]["variety"]) / base

    def copying(self, cell: int, seeds: Sequence[int]) -> float:
        """Mean correlation of scenes with the training view that each resembles most."""
        return metrics.mean(self.scores(cell, range(len(PROMPTS)), seeds).copying)

    def _mean(self, cell: int, name: str, seeds: Sequence[int]) -> float:
        return float(self._read(cell, name)[:, list(seeds)].mean())

    def _read(self, cell: int, name: str) -> torch.Tensor:
        values = self.data["cells"][cell]
        found = torch.tensor((values["judges"][self.judge] if name in JUDGED else values)[name], dtype=torch.float64)
        order = list(self.order or range(self.seeds))
        return found[:, order][:, :, order] if name == "alike" else found[:, order]

    @staticmethod
    def _there(rows: Sequence[int], seeds: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(list(rows))[:, None], torch.tensor(list(seeds))[None]


def draw_sample(
    index: int, recipe: str, *, split: str, seeds: int, device: str, overrides: Sequence[str], path: Path
) -> None:
    """Train an adapter of one character and write its sample to `path`.

    Args:
        index: of the character in its split.
        recipe: of RECIPES.
        split: of `traits.sample_indices`.
        seeds: pictures of each prompt in each cell.
        device: where it is done.
        overrides: settings, after the recipe's.
        path: a JSON file; written when all is done, with a picture beside it to be looked at.
    """
    wanted = sample_indices(index + 1, torch.Generator().manual_seed(SPLIT_SEED), split)[index:]
    text = grammar.describe(from_indices(wanted)[0], rng=random.Random(index), style="prompt")
    made = RECIPES[recipe]
    profile = load_profile("embedded", [f"models.device={device}", *made.settings, *overrides])
    models, judges = load(profile), {name: make(device) for name, make in JUDGES.items()}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        character = complete(Character(name=f"character {index}", prompt=text, seed=42 + index), models)
        sheet, extras = _pictures(character, made, profile, models, store)
        if made.rendered:
            extras = rendered_views(wanted, made.rendered, index, store)
        dataset = caption_views(made.views(sheet), character, profile.caption, models.captioner, store, extras)
        state = Path(folder) / "state"
        more: dict[str, Any] = {"seed": character.seed, "description": text}
        training = train_adapter(dataset, profile.train, models.diffusion, store, state_dir=state, **more)
        if made.redrawn:
            extras = redrawn_views(training, text, made.redrawn, index, models, profile.sweep, store)
            dataset = caption_views(sheet, character, profile.caption, models.captioner, store, extras)
            state = Path(folder) / "second"
            training = train_adapter(dataset, profile.train, models.diffusion, store, state_dir=state, **more)
        trained = time.perf_counter()
        drawing = _Drawing(
            profile,
            models,
            References(sheet, models.embedder, store, dataset.trained_extras),
            training,
            wanted,
            judges,
            seeds,
            index,
            text,
        )
        cells = drawing.cells(store)
        views = [open_image(store.get(view.image)) for view in sheet.views]
        more = [open_image(store.get(view.image)) for view in extras]
        described = drawing.described(text)
        recommended, said = drawing.recommended(text, store)
        everything = {share: drawing.everything(text, share, store) for share in (1.0, MILD)}
    pictures = len(cells) * seeds * len(PROMPTS)
    data = {
        "index": index,
        "recipe": recipe,
        "split": split,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor(),
        "prompt": text,
        "said": said,
        "described": described,
        "recommended": recommended,
        "everything": everything[1.0],
        "everything_mild": everything[MILD],
        "sheet_traits": {name: _sheet_traits(read, views, wanted) for name, read in judges.items()},
        "ceiling": drawing.references.ceiling(),
        "sheet_shown": drawing.reading.of_views(views),
        "prompts": [prompt.template for prompt in PROMPTS],
        "seeds": list(drawing.seeds),
        "rendered_margins": rendered_margins(wanted, index, PROMPTS, training.class_noun, models.embedder),
        "checkpoints": [
            {"step": one.step, "loss": one.loss, "validation_loss": one.validation_loss} for one in training.checkpoints
        ],
        "cells": cells,
        "seconds": {"train": trained - start, "picture": (time.perf_counter() - trained) / pictures},
    }
    contact_sheet([views, *([more] if more else []), *drawing.shown]).save(path.with_suffix(".webp"), quality=80)
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
        judges: Mapping[str, Judge],
        seeds: int,
        index: int,
        text: str,
    ) -> None:
        self.profile, self.models, self.references, self.training = profile, models, references, training
        self.wanted, self.judges = wanted, judges
        traits = described_traits(text, training.trigger, training.class_noun)
        self.reading = TraitReading(models.reader, traits, training.class_noun)
        self.shown: list[list[Image]] = []
        self.seeds = tuple(range(42 + index, 42 + index + seeds))
        texts = [prompt.to_draw(training.trigger, training.class_noun) for prompt in PROMPTS]
        self.inputs = encode_cell_inputs(models.diffusion, texts, self.seeds)

    def cells(self, store: Store) -> list[dict[str, Any]]:
        """Strength 0, then every checkpoint at every strength."""
        found = [self._cell(0, 0.0)]
        with AdapterMerger(self.models.diffusion.unet()) as merger:
            for checkpoint in spread(self.training.checkpoints, self.profile.sweep.checkpoints):
                layers = merger.read(store.get(checkpoint.adapter))
                for strength in STRENGTHS:
                    merger.put_on(layers, strength)
                    found.append(self._cell(checkpoint.step, strength))
        return found

    def described(self, text: str) -> dict[str, Any]:
        """The base model told everything that the description says, no adapter."""
        noun = self.training.class_noun
        return self._told(", ".join([noun, *trait_phrases(text, noun)]))

    def recommended(self, text: str, store: Store) -> tuple[dict[str, Any], list[str]]:
        """The last checkpoint at strength 1 with the words that the sweep would recommend, found on pictures that nobody judges."""
        noun, subject = self.training.class_noun, f"{self.training.trigger} {self.training.class_noun}"
        with last_checkpoint(self.training, self.models.diffusion, 1.0, store):
            quick = [classify(template).to_draw(self.training.trigger, noun) for template in QUICK]
            inputs = encode_cell_inputs(self.models.diffusion, quick, (9001, 9002))
            images = [image for row in draw(self.models.diffusion, inputs, self.profile.sweep) for image in row]
            traits = trait_phrases(text, noun)
            assert self.models.reader is not None
            shares = shares_of(self.models.reader.shown(images, traits, noun), traits)
            said = said_of(shares, subject, self.models.diffusion.count_tokens)
            self.shown.insert(0, [row[0] for row in draw(self.models.diffusion, self.inputs, self.profile.sweep)])
            return self._told(", ".join([subject, *said])), list(said)

    def everything(self, text: str, strength: float, store: Store) -> dict[str, Any]:
        """The last checkpoint with trigger and everything that the description says."""
        noun, subject = self.training.class_noun, f"{self.training.trigger} {self.training.class_noun}"
        with last_checkpoint(self.training, self.models.diffusion, strength, store):
            return self._told(", ".join([subject, *trait_phrases(text, noun)]))

    def _told(self, subject: str) -> dict[str, Any]:
        texts = [prompt.template.replace("{subject}", subject) for prompt in PROMPTS]
        images = draw(
            self.models.diffusion, encode_cell_inputs(self.models.diffusion, texts, self.seeds), self.profile.sweep
        )
        self.shown.append([row[0] for row in images])
        variety = score_cell(images, PROMPTS, self.training.class_noun, self.references).diversity.nanmean()
        judged = self._judged([image for row in images for image in row], (len(PROMPTS), len(self.seeds)))
        return {**judged, "variety": float(variety)}

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
            "shown": _rounded(self.reading.shares(flat).reshape(shape)),
            "match": _rounded(match_grid(flat, texts, self.references.embedder).reshape(*shape, -1)),
            "judges": self._judged(flat, shape),
        }

    def _judged(self, flat: Sequence[Image], shape: tuple[int, int]) -> dict[str, Any]:
        return {name: self._read(read, flat, shape) for name, read in self.judges.items()}

    def _read(self, read: Judge, flat: Sequence[Image], shape: tuple[int, int]) -> dict[str, Any]:
        reading, wanted = read(flat), self.wanted.expand(len(flat), -1)
        named = torch.tensor([_view(prompt) for prompt in PROMPTS]).repeat_interleave(shape[1])
        mask = visible_mask(wanted, named)
        right = (reading.traits == wanted) & mask
        sides = mask[:, SIDES] & (wanted[:, SIDES] != 0)
        return {
            "traits": _rounded((right.sum(dim=1) / mask.sum(dim=1)).reshape(shape)),
            "sides_right": _rounded((right[:, SIDES] & sides).sum(dim=1).reshape(shape)),
            "sides": _rounded(sides.sum(dim=1).reshape(shape)),
            "each": _each(right, mask, len(PROMPTS)),
            "view": _rounded((reading.views == named).reshape(shape)),
            "faces": _rounded(reading.faces.reshape(shape)),
        }


def _pictures(
    character: Character, made: Recipe, profile: Profile, models: Models, store: Store
) -> tuple[ViewsRecord, tuple[ExtraView, ...]]:
    """The pipeline from a sentence to the sheet's views, and to those more that are kept."""
    sheet = draw_sheet(character, profile.sheet, models.editor, store, captioner=models.captioner)
    views = crop_views(sheet, profile.crop, store)
    if not profile.expand.count:
        return views, ()
    return views, expand_views(views, character, profile.expand, models.editor, models.embedder, store).kept


def _sheet_traits(read: Judge, views: Sequence[Image], wanted: torch.Tensor) -> float:
    """What the judge sees of the character in the sheet's own views."""
    traits = torch.cat([read([view]).traits for view in views])
    everywhere = wanted.expand(len(views), -1)
    return probe.trait_accuracy(traits, everywhere, visible_mask(everywhere, torch.arange(len(views))))


def _each(right: torch.Tensor, mask: torch.Tensor, prompts: int) -> list[list[list[int]]]:
    """By prompt, each trait: in how many pictures it was right, of how many in which it was to be seen."""
    both = torch.stack([right, mask], dim=2).reshape(prompts, -1, *right.shape[1:], 2)
    found: list[list[list[int]]] = both.sum(dim=1).tolist()
    return found


def contact_sheet(rows: Sequence[Sequence[Image]]) -> Image:
    """Rows of pictures on one page: the sheet's views, then trigger alone, base told everything, recommended prompt."""
    width = max(sum(image.width for image in row) for row in rows)
    page = pil.new("RGB", (width, sum(max(image.height for image in row) for row in rows)), "white")
    top = 0
    for row in rows:
        left = 0
        for image in row:
            page.paste(image.convert("RGB"), (left, top))
            left += image.width
        top += max(image.height for image in row)
    return page


def _view(prompt: SweepPrompt) -> int:
    """The view a prompt names; the front when it names none."""
    return VIEWS.index(prompt.view) if prompt.view else 0


def _rounded(values: torch.Tensor) -> Any:
    return torch.round(values.double(), decimals=5).tolist()
