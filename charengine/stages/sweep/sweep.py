"""The sweep: pictures of checkpoints x strengths, paired by prompt and seed, scored against strength 0, and the pick.

Which cells are drawn is decided round by round (`race`), or all of them are (`sweep.design=grid`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from charengine.adapter.merging import AdapterMerger
from charengine.adapter.network import examine_adapter
from charengine.charts.canvas import PilCanvas
from charengine.charts.plots import contact_sheet, trade_off
from charengine.config import SweepSettings
from charengine.errors import Interrupted
from charengine.likeness.metrics import CellScores, Scale
from charengine.likeness.prompts import SweepPrompt, sweep_prompts
from charengine.likeness.scoring import References, score_cell
from charengine.pictures import png
from charengine.records import (
    AdapterRecord,
    CellMetrics,
    CheckpointRecord,
    DatasetRecord,
    PickRecord,
    SweepRecord,
    picture_name,
)
from charengine.stages.sweep.adapters import recommended
from charengine.stages.sweep.cells import Cell, KeptUnits
from charengine.stages.sweep.estimate import BASE, Estimate, estimate
from charengine.stages.sweep.pick import choose
from charengine.stages.sweep.race import Unit, check_budget, most_pictures, plan_round
from charengine.stages.sweep.sample import CellInputs, draw, encode_cell_inputs
from charengine.stages.sweep.scoring_aside import BackgroundScorer, PendingCell, Pictures, ScoredCell
from charengine.stages.sweep.summary import overbaked, scale_warnings, summarise, with_certainty
from charengine.stages.sweep.verdict import judge_training
from charengine.store import Store
from charengine.tracking.protocol import NullTracker, Tracker
from charengine.tracking.views import KIND_TAG
from charengine.wording import file_stem

if TYPE_CHECKING:
    from charengine.models import Diffusion, Embedder


log = logging.getLogger(__name__)


@dataclass
class Session:
    """Everything the cells of one sweep share.

    Attributes:
        grid: every cell as (step, strength), strength 0 first.
        checkpoints: those of the grid, by step.
        kept: units finished by this sweep before it was killed.
        cells: what was drawn, by index into the grid.
        merger: puts checkpoints on the base model.
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
    cells: dict[int, Cell] = field(default_factory=dict)

    @property
    def scale(self) -> Scale:
        """Strength 0 and the sheet's own views."""
        return Scale(base=self.cells[BASE].scores, ceiling=self.references.ceiling())

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


def sweep_adapter(
    training: AdapterRecord,
    dataset: DatasetRecord,
    settings: SweepSettings,
    diffusion: Diffusion,
    embedder: Embedder,
    store: Store,
    *,
    seed: int,
    tracker: Tracker = NullTracker(),
    recipe: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_cut: bool = False,
    key: str = "",
    on_drawn: Callable[[int, int], None] | None = None,
) -> SweepRecord:
    """Draw and score cells, pick one, export the adapter as trained and as recommended.

    Args:
        training: the checkpoints to try.
        dataset: whose views are the identity references.
        settings: strengths, prompts, seeds, floors.
        diffusion: the base model; left exactly as it was.
        embedder: identity embeddings and CLIP-T.
        store: where pictures and adapters go.
        seed: first of the paired seeds.
        tracker: gets one child run per cell.
        recipe: written into the exported adapter's metadata.
        should_stop: asked between cells.
        keep_cut: conclude from the cells that are finished when told to stop; a warning in the record says so.
        key: what finished cells are kept under, so that the same call after a kill draws only the rest; empty: not kept.
        on_drawn: told after each cell how many pictures are drawn, and how many there may be at most.

    Raises:
        Interrupted: `should_stop` said so, and `keep_cut` is off or no cell was finished.
        BadInput: `sweep.pictures` is not enough for strength 0 and one cell.
    """
    session = _open(training, dataset, settings, diffusion, embedder, store, seed, tracker, KeptUnits(store, key))
    left_out = _examine(session)
    cut: tuple[str, ...] = ()
    if not _run(session, should_stop, on_drawn):
        drawn = len(session.cells) - (BASE in session.cells)
        if not (keep_cut and drawn):
            raise Interrupted(f"sweep stopped after {drawn} cells")
        of = f" of {len(session.grid) - 1}" if settings.design == "grid" else ""
        cut = (f"the sweep was cut after {drawn}{of} cells: the pick is among these alone",)
    return _conclude(session, recipe, (*left_out, *cut))


def _open(
    training: AdapterRecord,
    dataset: DatasetRecord,
    settings: SweepSettings,
    diffusion: Diffusion,
    embedder: Embedder,
    store: Store,
    seed: int,
    tracker: Tracker,
    kept: KeptUnits,
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
        key=_sweep_key(training, dataset, settings, diffusion.sampling_fingerprint, embedder.fingerprint, seed),
        grid=[(0, 0.0), *((checkpoint.step, strength) for checkpoint in checkpoints for strength in strengths)],
        checkpoints={checkpoint.step: checkpoint for checkpoint in checkpoints},
        kept=kept,
        merger=AdapterMerger(diffusion.unet(), merge=settings.merge),
    )


def spread(checkpoints: Sequence[CheckpointRecord], count: int) -> list[CheckpointRecord]:
    """At most `count` checkpoints, evenly spread, the last always included."""
    total = len(checkpoints)
    if count >= total:
        return list(checkpoints)
    return [checkpoints[round((i + 1) * total / count) - 1] for i in range(count)]


def _examine(session: Session) -> tuple[str, ...]:
    """Every checkpoint of the grid held against the model before anything is drawn; what of them is left out.

    Raises:
        BadInput: one is damaged or for another model.
    """
    unet = session.diffusion.unet()
    told = (examine_adapter(unet, session.store.get(checkpoint.adapter)) for checkpoint in session.checkpoints.values())
    return tuple(dict.fromkeys(sentence for sentences in told for sentence in sentences))


def _run(session: Session, should_stop: Callable[[], bool], on_drawn: Callable[[int, int], None] | None) -> bool:
    """Strength 0, then round after round; False when told to stop before the last.

    Pictures are stored, and scored where a GPU draws, while the next ones are drawn: those of two units are in memory,
    never more.
    """

    def score(images: Pictures) -> CellScores:
        return score_cell(images, session.prompts, session.training.class_noun, session.references)

    aside = torch.device(session.diffusion.device).type != "cpu"
    with session.merger, BackgroundScorer(score, session.store, aside=aside) as scorer:
        while units := session.next_units():
            done = 0
            with closing(_finish(session, scorer, units, should_stop)) as finished:
                for unit, found in finished:
                    _keep(session, unit, found)
                    done += 1
                    if on_drawn:
                        on_drawn(session.drawn, most_pictures(session.grid, session.settings, len(session.prompts)))
            if done < len(units):
                return False
    for index, cell in sorted(session.cells.items()):
        if cell.mlflow_run_id is None:
            _log_cell(session, index, cell)
    return True


def _finish(
    session: Session, scorer: BackgroundScorer, units: Sequence[Unit], should_stop: Callable[[], bool]
) -> Generator[tuple[Unit, ScoredCell], None, None]:
    """Units with their scores: strength 0 first, which all others are compared with, then what a killed sweep left, then
    one checkpoint after the other, since putting an adapter on takes time; the next unit is drawn while one is finished."""
    kept = {unit: found for unit in units if (found := session.kept.find(*_place(session, unit)))}
    missing = sorted((unit for unit in units if unit not in kept), key=lambda unit: session.grid[unit.cell][0])
    with closing(_finish_drawn(session, scorer, missing, should_stop)) as drawn:
        if missing and missing[0].cell == BASE:
            yield next(drawn)
        yield from kept.items()
        yield from drawn


def _finish_drawn(
    session: Session, scorer: BackgroundScorer, units: Sequence[Unit], should_stop: Callable[[], bool]
) -> Generator[tuple[Unit, ScoredCell], None, None]:
    """Units drawn now, each written down when it is whole."""

    def whole(unit: Unit, pending: PendingCell) -> tuple[Unit, ScoredCell]:
        found = pending.result()
        session.kept.keep(*_place(session, unit), found)
        return unit, found

    waiting = None
    with closing(_draw_units(session, units, should_stop)) as drawn:
        for unit, images in drawn:
            pending = scorer.start(images, _names(session, unit))
            if waiting:
                yield whole(*waiting)
            waiting = unit, pending
        if waiting:
            yield whole(*waiting)


def _draw_units(
    session: Session, units: Sequence[Unit], should_stop: Callable[[], bool]
) -> Generator[tuple[Unit, Pictures], None, None]:
    """Pictures, unit by unit; each checkpoint is read once."""
    for step, own in groupby(units, key=lambda unit: session.grid[unit.cell][0]):
        layers = session.merger.read(session.store.get(session.checkpoints[step].adapter)) if step else {}
        for unit in own:
            if step and should_stop():
                return
            session.merger.put_on(layers, session.grid[unit.cell][1])
            yield unit, draw(session.diffusion, session.inputs, session.settings, unit.seeds)


def _names(session: Session, unit: Unit) -> list[list[str]]:
    """Names of a unit's pictures: a row per prompt, one per seed."""
    step, strength, seeds = _place(session, unit)
    return [[picture_name(step, strength, row, seed) for seed in seeds] for row in range(len(session.prompts))]


def _place(session: Session, unit: Unit) -> tuple[int, float, list[int]]:
    """A unit's checkpoint step, strength and seeds."""
    return (*session.grid[unit.cell], [session.inputs.seeds[column] for column in unit.seeds])


def _keep(session: Session, unit: Unit, found: ScoredCell) -> None:
    """Add a finished unit to its cell; a cell that gets no more pictures is logged at once."""
    cell = session.cells.setdefault(unit.cell, Cell())
    cell.parts.append(found.scores)
    cell.images |= found.images
    cell.thumbs |= {(row, unit.seeds[column]): thumb for (row, column), thumb in found.thumbs.items()}
    step, strength = session.grid[unit.cell]
    log.info("sweep: step %d strength %g: %d seeds", step, strength, cell.seeds)
    if session.settings.design == "grid":
        _log_cell(session, unit.cell, cell)


def _measure(session: Session, index: int, cell: Cell) -> CellMetrics:
    """A cell's own numbers."""
    scale = session.scale
    measured = summarise(cell.scores, scale, *session.grid[index])
    more = {"mlflow_run_id": cell.mlflow_run_id} | ({"ceiling": scale.ceiling} if index == BASE else {})
    return measured.model_copy(update=more)


def _log_cell(session: Session, index: int, cell: Cell) -> None:
    """A child run with a cell's numbers and pictures."""
    step, strength = session.grid[index]
    checkpoint = session.checkpoints.get(step)
    measured = _measure(session, index, cell)
    child = session.tracker.child(
        f"step {step} × {strength:g}" if checkpoint else "base model",
        key=f"{session.key}/{step}/{strength:g}",
        params={"checkpoint": step, "strength": strength, **_losses(checkpoint)},
        tags={KIND_TAG: "cell"},
    )
    child.log_metrics(_logged(measured) | {"strength": strength, "checkpoint": step}, step=step)
    sheet = contact_sheet([(_heading(measured), cell.thumbs)], [""] * len(session.prompts), cell.seeds, None)
    child.log_image(sheet, "cell", 0)  # all at one step: MLflow shows them side by side
    child.finish()
    cell.mlflow_run_id = child.run_id


def _conclude(session: Session, recipe: dict[str, Any] | None, told: tuple[str, ...]) -> SweepRecord:
    """The pick with its certainty, the verdict, the pictures and the two adapters."""
    found = session.estimate()
    drawn = dict(sorted(session.cells.items()))
    base = _measure(session, BASE, drawn[BASE])
    measured = with_certainty(
        {index: _measure(session, index, cell) for index, cell in drawn.items() if index != BASE}, found
    )
    choice = choose(measured, found, session.settings)
    picked = measured[choice.index]
    cells = [base, *measured.values()]
    columns = [(_heading(one), cell.thumbs) for one, cell in zip(cells, drawn.values(), strict=True)]
    labels = [prompt.to_draw(session.training.trigger, session.training.class_noun) for prompt in session.prompts]
    seeds = max(cell.seeds for cell in drawn.values())
    sheet = contact_sheet(columns, labels, seeds, cells.index(picked))
    canvas = PilCanvas(640, 420)
    trade_off(canvas, cells, picked, session.settings.adherence_floor)
    session.tracker.log_image(sheet, "contact_sheet")
    session.tracker.log_image(canvas.image, "trade_off")
    session.tracker.log_metrics(
        {f"pick/{name}": value for name, value in _logged(picked).items()}, step=picked.checkpoint_step
    )
    trigger, store = session.training.trigger, session.store
    as_picked, doubt = recommended(store.get(session.checkpoints[picked.checkpoint_step].adapter), picked, recipe)
    return SweepRecord(
        cells=tuple(cells),
        prompts=tuple(prompt.template for prompt in session.prompts),
        seeds=session.inputs.seeds[:seeds],
        contact_sheet=store.put(png(sheet), "contact-sheet.png"),
        plot=store.put(png(canvas.image), "trade-off.png"),
        images={name: ref for cell in drawn.values() for name, ref in cell.images.items()},
        pick=PickRecord(
            checkpoint_step=picked.checkpoint_step,
            strength=picked.strength,
            reasons=choice.reasons,
            metrics=picked,
            baseline=base,
            overbaked=overbaked(cells[1:], cells[-1].checkpoint_step),
            expected_loss=choice.expected_loss,
        ),
        verdict=judge_training(session.grid, found, session.settings),
        adapter=store.put(store.get(session.training.checkpoints[-1].adapter), f"{file_stem(trigger)}.safetensors"),
        recommended_adapter=store.put(as_picked, f"{file_stem(trigger)}_recommended.safetensors"),
        mlflow_run_id=session.tracker.run_id,
        warnings=(*told, *choice.warnings, *doubt, *scale_warnings(session.scale)),
    )


def _sweep_key(
    training: AdapterRecord, dataset: DatasetRecord, settings: SweepSettings, diffusion: str, embedder: str, seed: int
) -> str:
    adapters = [checkpoint.adapter.sha256 for checkpoint in training.checkpoints]
    parts = [adapters, dataset.digest, settings.digest(), diffusion, embedder, seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _losses(checkpoint: CheckpointRecord | None) -> dict[str, float]:
    """The losses of a checkpoint that has them: numbers only, so that MLflow plots them on an axis of numbers."""
    known = {} if checkpoint is None else {"final_loss": checkpoint.loss, "validation_loss": checkpoint.validation_loss}
    return {name: value for name, value in known.items() if value is not None}


def _logged(cell: CellMetrics) -> dict[str, float]:
    """Every number of a cell that was measured."""
    left_out = {"checkpoint_step", "strength", "images", "smoothed", "mlflow_run_id"}
    left_out |= set() if cell.diversity else {"diversity", "diversity_kept"}  # of a single seed
    numbers = cell.model_dump(exclude=left_out, exclude_none=True)
    if cell.smoothed:
        numbers |= {f"smoothed_{name}": value for name, value in cell.smoothed.model_dump(exclude_none=True).items()}
    return {name: float(value) for name, value in numbers.items()}


def _heading(cell: CellMetrics) -> str:
    return f"step {cell.checkpoint_step}\n{cell.strength:g}" if cell.strength else "base model\nstrength 0"
