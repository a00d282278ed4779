"""What the cells of one sweep share: the grid, the models, who reads traits, and what was drawn so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from charengine.adapter.merging import AdapterMerger
from charengine.adapter.parts import Parts
from charengine.config import SweepSettings
from charengine.likeness.metrics import Scale
from charengine.likeness.prompts import SweepPrompt, sweep_prompts
from charengine.likeness.scoring import References
from charengine.records import AdapterRecord, CheckpointRecord, DatasetRecord
from charengine.stages.sweep.budget import check_budget
from charengine.stages.sweep.cells import Cell, KeptUnits
from charengine.stages.sweep.estimate import BASE, Estimate, estimate
from charengine.stages.sweep.race import Unit, plan_round
from charengine.stages.sweep.sample import CellInputs, encode_cell_inputs
from charengine.stages.sweep.traits import TraitReading
from charengine.store import Store
from charengine.tracking.protocol import Tracker

if TYPE_CHECKING:
    from charengine.models import Diffusion, Embedder

KEPT_READ = 4  # checkpoints; each is a few hundred megabytes of host memory


@dataclass
class Session:
    """Everything the cells of one sweep share.

    Attributes:
        grid: every cell as (step, strength), strength 0 first.
        checkpoints: those of the grid, by step.
        kept: units finished by this sweep before it was killed.
        cells: what was drawn, by index into the grid.
        merger: puts checkpoints on the base model.
        reading: who reads the described traits; None where nobody does.
        sheet_shown: what is read off the sheet's own views; None before that.
    """

    training: AdapterRecord
    settings: SweepSettings
    diffusion: Diffusion
    references: References
    store: Store
    tracker: Tracker
    prompts: tuple[SweepPrompt, ...]
    inputs: CellInputs
    key: str
    grid: list[tuple[int, float]]
    checkpoints: dict[int, CheckpointRecord]
    kept: KeptUnits
    merger: AdapterMerger
    reading: TraitReading | None
    sheet_shown: float | None = None
    cells: dict[int, Cell] = field(default_factory=dict)
    _read: dict[int, dict[str, Parts]] = field(default_factory=dict)

    def adapter(self, step: int) -> dict[str, Parts]:
        """A checkpoint as `AdapterMerger.put_on` takes it; nothing for step 0. The last few stay read: a race comes back to them."""
        if step and step not in self._read:
            while len(self._read) >= KEPT_READ:
                del self._read[next(iter(self._read))]
            self._read[step] = layers = self.merger.read(self.store.get(self.checkpoints[step].adapter))
            self.merger.prepare(layers)
        return self._read.get(step, {})

    @property
    def scale(self) -> Scale:
        """Strength 0 and the sheet's own views."""
        return Scale(self.cells[BASE].scores, self.references.ceiling(), self.sheet_shown)

    @property
    def drawn(self) -> int:
        """Pictures drawn so far."""
        return len(self.prompts) * sum(cell.seeds for cell in self.cells.values())

    def next_units(self) -> list[Unit]:
        """What to draw next; nothing when the sweep is complete."""
        drawn = {index: cell.seeds for index, cell in self.cells.items()}
        return plan_round(self.grid, drawn, self.settings, len(self.prompts), self.estimate)

    def estimate(self) -> Estimate:
        """What the pictures so far say; the same pictures say the same."""
        scored = {index: cell.scores for index, cell in sorted(self.cells.items())}
        generator = torch.Generator().manual_seed(self.inputs.seeds[0])
        return estimate(self.grid, scored, self.scale, self.settings, generator)


def open_session(
    training: AdapterRecord,
    dataset: DatasetRecord,
    settings: SweepSettings,
    diffusion: Diffusion,
    embedder: Embedder,
    store: Store,
    seed: int,
    tracker: Tracker,
    kept: KeptUnits,
    reading: TraitReading | None,
) -> Session:
    """The grid, and what its cells share."""
    prompts = sweep_prompts(settings)
    check_budget(settings, len(prompts))
    checkpoints = spread(training.checkpoints, settings.checkpoints)
    strengths = sorted({strength for strength in settings.strengths if strength > 0})
    seeds = tuple(seed + offset for offset in range(settings.seeds))
    texts = [prompt.to_draw(training.trigger, training.class_noun) for prompt in prompts]
    return Session(
        training=training,
        settings=settings,
        diffusion=diffusion,
        references=References(dataset.views, embedder, store, dataset.trained_extras),
        store=store,
        tracker=tracker,
        prompts=prompts,
        inputs=encode_cell_inputs(diffusion, texts, seeds),
        key=_sweep_key(
            training, dataset, settings, diffusion.sampling_fingerprint, embedder.fingerprint, reading, seed
        ),
        grid=[(0, 0.0), *((checkpoint.step, strength) for checkpoint in checkpoints for strength in strengths)],
        checkpoints={checkpoint.step: checkpoint for checkpoint in checkpoints},
        kept=kept,
        merger=AdapterMerger(diffusion.unet(), merge=settings.merge),
        reading=reading,
    )


def spread(checkpoints: Sequence[CheckpointRecord], count: int) -> list[CheckpointRecord]:
    """At most `count` checkpoints, evenly spread, the last always included."""
    total = len(checkpoints)
    if count >= total:
        return list(checkpoints)
    return [checkpoints[round((i + 1) * total / count) - 1] for i in range(count)]


def _sweep_key(
    training: AdapterRecord,
    dataset: DatasetRecord,
    settings: SweepSettings,
    diffusion: str,
    embedder: str,
    reading: TraitReading | None,
    seed: int,
) -> str:
    adapters = [checkpoint.adapter.sha256 for checkpoint in training.checkpoints]
    parts = [adapters, dataset.digest, settings.digest(), diffusion, embedder, seed]
    parts += [reading.reader.fingerprint, reading.traits] if reading else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
