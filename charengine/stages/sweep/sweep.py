"""The sweep: checkpoints x strengths x prompts x paired seeds, scored against strength 0, and the pick made from them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from charengine.adapter.files import check_values, load_adapter, read_metadata, save_adapter
from charengine.adapter.metadata import told_by
from charengine.adapter.network import apply_adapter, examine_adapter
from charengine.adapter.rescaling import rescale
from charengine.charts.canvas import PilCanvas
from charengine.charts.plots import contact_sheet, trade_off
from charengine.config import SweepSettings
from charengine.errors import BadInput, ConfigError, Interrupted
from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores, Scale
from charengine.likeness.prompts import SweepPrompt, sweep_prompts
from charengine.likeness.scoring import References, score_cell
from charengine.pictures import png
from charengine.records import AdapterRecord, CellMetrics, CheckpointRecord, DatasetRecord, PickRecord, Ref, SweepRecord
from charengine.stages.sweep.finishing import Finished, Finisher, Pending, Pictures
from charengine.stages.sweep.pick import choose
from charengine.stages.sweep.sample import Order, draw, place_order
from charengine.stages.sweep.summary import overbaked, scale_warnings, summarise, with_bounds
from charengine.store import Store
from charengine.tracking.protocol import NullTracker, Tracker
from charengine.wording import file_stem, noun_problem, phrase_problem

if TYPE_CHECKING:
    from PIL.Image import Image

    from charengine.models import Diffusion, Embedder

BOOTSTRAP_ROUNDS = 400

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """A finished cell: scores, measured numbers, stored images and small copies for the contact sheet."""

    scores: CellScores
    metrics: CellMetrics
    images: dict[str, Ref]
    thumbs: dict[tuple[int, int], Image]


@dataclass
class Session:
    """Everything the cells of one sweep share."""

    training: AdapterRecord
    settings: SweepSettings
    diffusion: Diffusion
    references: References
    store: Store
    tracker: Tracker
    prompts: tuple[SweepPrompt, ...]
    order: Order
    key: str


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
) -> SweepRecord:
    """Draw and score every cell, pick one, export the adapter as trained and as recommended.

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

    Raises:
        Interrupted: `should_stop` said so, and `keep_cut` is off or no cell was finished.
    """
    prompts = sweep_prompts(settings)
    seeds = tuple(seed + offset for offset in range(settings.seeds))
    texts = [prompt.to_draw(training.trigger, training.class_noun) for prompt in prompts]
    session = Session(
        training=training,
        settings=settings,
        diffusion=diffusion,
        references=References(dataset.views, embedder, store, dataset.trained_extras),
        store=store,
        tracker=tracker,
        prompts=prompts,
        order=place_order(diffusion, texts, seeds),
        key=_sweep_key(training, dataset, settings, diffusion.fingerprint, embedder.fingerprint, seed),
    )
    plan = _plan(session)
    left_out = _examine(session, plan)
    base, scale, cells = _run(session, plan, should_stop)
    cut: tuple[str, ...] = ()
    if len(cells) < len(plan):
        if not (keep_cut and cells):
            raise Interrupted(f"sweep stopped after {len(cells)} cells")
        cut = (f"the sweep was cut after {len(cells)} of {len(plan)} cells: the pick is among these alone",)
    return _conclude(session, base, cells, scale, recipe, (*left_out, *cut))


def spread(checkpoints: Sequence[CheckpointRecord], count: int) -> list[CheckpointRecord]:
    """At most `count` checkpoints, evenly spread, the last always included."""
    total = len(checkpoints)
    if count >= total:
        return list(checkpoints)
    return [checkpoints[round((i + 1) * total / count) - 1] for i in range(count)]


def training_from_file(path: Path, store: Store, *, trigger: str = "", class_noun: str = "") -> AdapterRecord:
    """A sweepable record of an adapter file from an earlier run or another trainer; its step and trigger come from its metadata.

    Raises:
        BadInput: not a readable adapter, damaged, or its trigger or class noun is neither in the file nor given.
        ConfigError: its trigger or class noun cannot be one.
    """
    told = told_by(read_metadata(path))
    trigger, class_noun = trigger or told.trigger, class_noun or told.class_noun
    missing = [word for word, value in (("trigger", trigger), ("class noun", class_noun)) if not value]
    if missing:
        raise BadInput(f"{path} does not say its {' and '.join(missing)}: give {' and '.join(missing)} yourself")
    problems = [problem for problem in (phrase_problem(trigger), noun_problem(class_noun)) if problem]
    if problems:
        raise ConfigError([f"{path}: {problem}; give it yourself" for problem in problems])
    data = path.read_bytes()
    try:
        check_values(load_adapter(data)[0])
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    checkpoint = CheckpointRecord(step=told.steps, adapter=store.put(data, path.name))
    return AdapterRecord(
        checkpoints=(checkpoint,),
        steps=told.steps,
        trigger=trigger,
        class_noun=class_noun,
        dataset_digest=told.dataset_digest,
    )


def recommended(data: bytes, picked: CellMetrics, recipe: dict[str, Any] | None) -> tuple[bytes, tuple[str, ...]]:
    """The picked checkpoint with its strength as the new 1.0, the pick in its metadata; and a warning where that cannot be.

    Nothing that goes wrong here is worth losing a finished sweep for.
    """
    doubts: tuple[str, ...] = ()
    try:
        data = rescale(data, picked.strength)
    except Exception as error:
        if not isinstance(error, BadInput):  # DoRA is expected; the rest is a defect, said and survived
            log.exception("the adapter could not be rescaled")
        doubts = (f"the recommended adapter is not rescaled, use it at strength {picked.strength:g}: {error}",)
    tensors, metadata = load_adapter(data)
    metadata["charengine.pick"] = picked.model_dump_json(exclude={"mlflow_run_id"})
    if recipe is not None:
        metadata["charengine.recipe"] = json.dumps(recipe, sort_keys=True)
    return save_adapter(tensors, metadata), doubts


def _plan(session: Session) -> list[tuple[CheckpointRecord, float]]:
    """Every chosen checkpoint at every strength."""
    strengths = sorted({strength for strength in session.settings.strengths if strength > 0})
    chosen = spread(session.training.checkpoints, session.settings.checkpoints)
    return [(checkpoint, strength) for checkpoint in chosen for strength in strengths]


def _examine(session: Session, plan: Sequence[tuple[CheckpointRecord, float]]) -> tuple[str, ...]:
    """Every checkpoint of the plan held against the model before anything is drawn; what of them is left out.

    Raises:
        BadInput: one is damaged or for another model.
    """
    unet = session.diffusion.unet()
    checkpoints = {checkpoint.adapter.sha256: checkpoint for checkpoint, _ in plan}
    told = (examine_adapter(unet, session.store.get(checkpoint.adapter)) for checkpoint in checkpoints.values())
    return tuple(dict.fromkeys(sentence for sentences in told for sentence in sentences))


def _run(
    session: Session, plan: Sequence[tuple[CheckpointRecord, float]], should_stop: Callable[[], bool]
) -> tuple[Cell, Scale, list[Cell]]:
    """Strength 0, the scale it gives, and the plan's cells until told to stop.

    A cell is stored, and scored where a GPU draws, while the next one is drawn: the pictures of two cells are in memory,
    never more.
    """
    aside = torch.device(session.diffusion.device).type != "cpu"

    def score(images: Pictures) -> CellScores:
        return score_cell(images, session.prompts, session.training.class_noun, session.references)

    cells: list[Cell] = []
    with (
        Finisher(score, session.store, aside=aside) as finisher,
        closing(_draw_cells(session, plan, should_stop)) as drawn,
    ):
        pending = finisher.start(draw(session.diffusion, session.order, session.settings), _names(session, None, 0.0))
        following = next(drawn, None)
        base, scale = _finish_base(session, pending)
        while following is not None:
            checkpoint, strength, images = following
            pending = finisher.start(images, _names(session, checkpoint, strength))
            following = next(drawn, None)
            cells.append(_finish_cell(session, scale, pending.result(), checkpoint, strength))
    return base, scale, cells


def _draw_cells(
    session: Session, plan: Sequence[tuple[CheckpointRecord, float]], should_stop: Callable[[], bool]
) -> Generator[tuple[CheckpointRecord, float, Pictures], None, None]:
    """The plan's pictures, cell by cell; the strength is changed live, the base restored after each checkpoint."""
    for checkpoint, cells in groupby(plan, key=lambda cell: cell[0]):
        applied = apply_adapter(session.diffusion.unet(), session.store.get(checkpoint.adapter))
        try:
            for _, strength in cells:
                if should_stop():
                    return
                applied.set_strength(strength)
                yield checkpoint, strength, draw(session.diffusion, session.order, session.settings)
        finally:
            applied.remove()


def _names(session: Session, checkpoint: CheckpointRecord | None, strength: float) -> list[list[str]]:
    """Names of a cell's pictures: a row per prompt, one per seed."""
    step, seeds = checkpoint.step if checkpoint else 0, session.order.seeds
    return [[f"{step}/{strength:g}/{row}/{seed}" for seed in seeds] for row in range(len(session.prompts))]


def _finish_base(session: Session, pending: Pending) -> tuple[Cell, Scale]:
    """Strength 0: the control, drawn once for all checkpoints, and the scale it gives."""
    finished = pending.result()
    scale = Scale(base=finished.scores, ceiling=session.references.ceiling())
    cell = _finish_cell(session, scale, finished, None, 0.0)
    detail = {**cell.metrics.detail, "ceiling": scale.ceiling}
    return replace(cell, metrics=cell.metrics.model_copy(update={"detail": detail})), scale


def _finish_cell(
    session: Session, scale: Scale, finished: Finished, checkpoint: CheckpointRecord | None, strength: float
) -> Cell:
    """Measure, and log to a child run."""
    step = checkpoint.step if checkpoint else 0
    measured = summarise(finished.scores, scale, step, strength)
    child = session.tracker.child(
        f"step {step} × {strength:g}" if checkpoint else "base model",
        key=f"{session.key}/{step}/{strength:g}",
        params={"checkpoint": step, "strength": strength, **_losses(checkpoint)},
    )
    child.log_metrics(_logged(measured), step=step)
    rows, columns = len(session.prompts), len(session.order.seeds)
    child.log_image(contact_sheet([(_heading(measured), finished.thumbs)], [""] * rows, columns, None), "images")
    child.finish()
    log.info("sweep: step %d strength %g: score %.3f", step, strength, measured.score)
    measured = measured.model_copy(update={"mlflow_run_id": child.run_id})
    return Cell(finished.scores, measured, finished.images, finished.thumbs)


def _conclude(
    session: Session, base: Cell, cells: list[Cell], scale: Scale, recipe: dict[str, Any] | None, told: tuple[str, ...]
) -> SweepRecord:
    """Confidence bounds, the pick, the pictures and the two adapters."""
    generator = torch.Generator().manual_seed(session.order.seeds[0])
    resampled = metrics.resampled_scores([cell.scores for cell in cells], scale, BOOTSTRAP_ROUNDS, generator)
    measured = with_bounds([cell.metrics for cell in cells], resampled)
    choice = choose(measured, resampled, session.settings)
    picked = measured[choice.index]
    columns = [(_heading(cell.metrics), cell.thumbs) for cell in [base, *cells]]
    labels = [prompt.to_draw(session.training.trigger, session.training.class_noun) for prompt in session.prompts]
    sheet = contact_sheet(columns, labels, len(session.order.seeds), choice.index + 1)
    canvas = PilCanvas(640, 420)
    trade_off(canvas, [base.metrics, *measured], picked, session.settings.adherence_floor)
    session.tracker.log_image(sheet, "contact_sheet")
    session.tracker.log_image(canvas.image, "trade_off")
    session.tracker.log_metrics(
        {f"pick/{name}": value for name, value in _logged(picked).items()}, step=picked.checkpoint_step
    )
    checkpoints = {checkpoint.step: checkpoint for checkpoint in session.training.checkpoints}
    last = session.training.checkpoints[-1]
    trigger = session.training.trigger
    as_picked, doubt = recommended(session.store.get(checkpoints[picked.checkpoint_step].adapter), picked, recipe)
    return SweepRecord(
        cells=(base.metrics, *measured),
        prompts=tuple(prompt.template for prompt in session.prompts),
        seeds=session.order.seeds,
        contact_sheet=session.store.put(png(sheet), "contact-sheet.png"),
        plot=session.store.put(png(canvas.image), "trade-off.png"),
        images={name: ref for cell in [base, *cells] for name, ref in cell.images.items()},
        pick=PickRecord(
            checkpoint_step=picked.checkpoint_step,
            strength=picked.strength,
            reasons=choice.reasons,
            metrics=picked,
            baseline=base.metrics,
            overbaked=overbaked(measured, measured[-1].checkpoint_step),
        ),
        adapter=session.store.put(session.store.get(last.adapter), f"{file_stem(trigger)}.safetensors"),
        recommended_adapter=session.store.put(as_picked, f"{file_stem(trigger)}_recommended.safetensors"),
        mlflow_run_id=session.tracker.run_id,
        warnings=(*told, *choice.warnings, *doubt, *scale_warnings(scale)),
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
    names = ("identity", "adherence", "diversity", "copying", "score")
    return {**{name: getattr(cell, name) for name in names}, **cell.detail}


def _heading(cell: CellMetrics) -> str:
    return f"step {cell.checkpoint_step}\n{cell.strength:g}" if cell.strength else "base model\nstrength 0"
