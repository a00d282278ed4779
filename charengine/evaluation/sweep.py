"""The sweep: checkpoints x strengths x prompts x paired seeds, scored against strength 0, and the pick made from them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from charengine.adapter import apply_adapter
from charengine.adapter_files import load_adapter, read_metadata, rescale, save_adapter
from charengine.config import SweepSettings
from charengine.errors import BadInput, Interrupted
from charengine.evaluation import metrics
from charengine.evaluation.canvas import PilCanvas
from charengine.evaluation.metrics import CellScores, Scale
from charengine.evaluation.pick import choose
from charengine.evaluation.plots import contact_sheet, trade_off
from charengine.evaluation.prompts import SweepPrompt, sweep_prompts
from charengine.evaluation.sample import Order, draw, place_order, to_png, to_webp
from charengine.evaluation.scoring import References, score_cell
from charengine.evaluation.summary import overbaked, scale_warnings, summarise, with_bounds
from charengine.records import AdapterRecord, CellMetrics, CheckpointRecord, DatasetRecord, PickRecord, Ref, SweepRecord
from charengine.store import Store
from charengine.tracking import NullTracker, Tracker

if TYPE_CHECKING:
    from PIL.Image import Image

    from charengine.models import Diffusion, Embedder

STAGE_VERSION = 2
BOOTSTRAP_ROUNDS = 400
THUMB = 160  # pixels: what is kept in memory of a finished cell's images

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
    recipe: dict | None = None,
    should_stop: Callable[[], bool] = lambda: False,
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

    Raises:
        Interrupted: `should_stop` said so.
    """
    prompts = sweep_prompts(settings)
    seeds = tuple(seed + offset for offset in range(settings.seeds))
    texts = [prompt.to_draw(training.trigger, training.class_noun) for prompt in prompts]
    session = Session(
        training=training,
        settings=settings,
        diffusion=diffusion,
        references=References(dataset, embedder, store),
        store=store,
        tracker=tracker,
        prompts=prompts,
        order=place_order(diffusion, texts, seeds),
        key=_sweep_key(training, dataset, settings, diffusion.fingerprint, embedder.fingerprint, seed),
    )
    base, scale = _draw_base(session)
    cells = _draw_cells(session, scale, should_stop)
    return _conclude(session, base, cells, scale, recipe)


def spread(checkpoints: Sequence[CheckpointRecord], count: int) -> list[CheckpointRecord]:
    """At most `count` checkpoints, evenly spread, the last always included."""
    total = len(checkpoints)
    if count >= total:
        return list(checkpoints)
    return [checkpoints[round((i + 1) * total / count) - 1] for i in range(count)]


def training_from_file(path: Path, store: Store, *, trigger: str = "", class_noun: str = "") -> AdapterRecord:
    """A sweepable record of an adapter file from an earlier run or another trainer; its step and trigger come from its metadata.

    Raises:
        BadInput: not a readable adapter, or its trigger or class noun is neither in the file nor given.
    """
    metadata = read_metadata(path)
    recipe = json.loads(metadata.get("charengine.recipe", "{}"))
    character = recipe.get("character", {})
    trigger = trigger or metadata.get("modelspec.trigger_phrase", "") or character.get("trigger", "")
    class_noun = class_noun or recipe.get("class_noun", "") or character.get("class_noun", "")
    missing = [word for word, value in (("trigger", trigger), ("class noun", class_noun)) if not value]
    if missing:
        raise BadInput(f"{path} does not say its {' and '.join(missing)}: give {' and '.join(missing)} yourself")
    steps = int(metadata.get("ss_steps") or metadata.get("ss_max_train_steps") or 0)
    data = path.read_bytes()
    checkpoint = CheckpointRecord(step=steps, adapter=store.put(data, path.name), loss=float("nan"))
    return AdapterRecord(
        checkpoints=(checkpoint,),
        steps=steps,
        trigger=trigger,
        class_noun=class_noun,
        dataset_digest=recipe.get("dataset_digest", ""),
        curve=store.put(b"step,loss,smoothed,learning_rate\n", "loss.csv"),
    )


def recommended(data: bytes, picked: CellMetrics, recipe: dict | None) -> tuple[bytes, tuple[str, ...]]:
    """The picked checkpoint with its strength as the new 1.0, the pick in its metadata; and a warning where that cannot be."""
    doubts: tuple[str, ...] = ()
    try:
        data = rescale(data, picked.strength)
    except BadInput as error:  # DoRA: not worth losing a finished sweep for
        doubts = (f"the recommended adapter is not rescaled, use it at strength {picked.strength:g}: {error}",)
    tensors, metadata = load_adapter(data)
    metadata["charengine.pick"] = picked.model_dump_json(exclude={"mlflow_run_id"})
    if recipe is not None:
        metadata["charengine.recipe"] = json.dumps(recipe, sort_keys=True)
    return save_adapter(tensors, metadata), doubts


def _draw_base(session: Session) -> tuple[Cell, Scale]:
    """Strength 0: the control, drawn once for all checkpoints, and the scale it gives."""
    images = draw(session.diffusion, session.order, session.settings)
    noun = session.training.class_noun
    scores = score_cell(images, session.prompts, noun, session.references)
    scale = Scale(base=scores, ceiling=session.references.ceiling())
    cell = _finish_cell(session, scale, scores, images, None, 0.0)
    detail = {**cell.metrics.detail, "ceiling": scale.ceiling}
    return replace(cell, metrics=cell.metrics.model_copy(update={"detail": detail})), scale


def _draw_cells(session: Session, scale: Scale, should_stop: Callable[[], bool]) -> list[Cell]:
    """Every chosen checkpoint at every strength; the strength is changed live, the base restored after each checkpoint."""
    cells: list[Cell] = []
    strengths = sorted({strength for strength in session.settings.strengths if strength > 0})
    for checkpoint in spread(session.training.checkpoints, session.settings.checkpoints):
        applied = apply_adapter(session.diffusion.unet(), session.store.get(checkpoint.adapter), strengths[0])
        try:
            for strength in strengths:
                if should_stop():
                    raise Interrupted(f"sweep stopped after {len(cells)} cells")
                applied.set_strength(strength)
                images = draw(session.diffusion, session.order, session.settings)
                scores = score_cell(images, session.prompts, session.training.class_noun, session.references)
                cells.append(_finish_cell(session, scale, scores, images, checkpoint, strength))
        finally:
            applied.remove()
    return cells


def _finish_cell(
    session: Session,
    scale: Scale,
    scores: CellScores,
    images: list[list[Image]],
    checkpoint: CheckpointRecord | None,
    strength: float,
) -> Cell:
    """Store the images, measure, log to a child run."""
    step = checkpoint.step if checkpoint else 0
    places = [(row, column) for row in range(len(images)) for column in range(len(images[row]))]
    refs = {}
    thumbs = {}
    for row, column in places:
        image, name = images[row][column], f"{step}/{strength:g}/{row}/{session.order.seeds[column]}"
        refs[name] = session.store.put(to_webp(image), name.replace("/", "-") + ".webp")
        thumbs[row, column] = _small(image)
    measured = summarise(scores, scale, step, strength)
    child = session.tracker.child(
        "sweep-cell",
        key=f"{session.key}/{step}/{strength:g}",
        params={
            "checkpoint": step,
            "strength": strength,
            "final_loss": checkpoint.loss if checkpoint else "base model",
            "validation_loss": checkpoint.validation_loss if checkpoint else "base model",
        },
    )
    child.log_metrics(_logged(measured), step=step)
    child.log_image(contact_sheet([(_heading(measured), thumbs)], [""] * len(images), len(images[0]), None), "images")
    child.finish()
    log.info("sweep: step %d strength %g: score %.3f", step, strength, measured.score)
    return Cell(scores, measured.model_copy(update={"mlflow_run_id": child.run_id}), refs, thumbs)


def _conclude(session: Session, base: Cell, cells: list[Cell], scale: Scale, recipe: dict | None) -> SweepRecord:
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
        contact_sheet=session.store.put(to_png(sheet), "contact-sheet.png"),
        plot=session.store.put(to_png(canvas.image), "trade-off.png"),
        images={name: ref for cell in [base, *cells] for name, ref in cell.images.items()},
        pick=PickRecord(
            checkpoint_step=picked.checkpoint_step,
            strength=picked.strength,
            reasons=choice.reasons,
            metrics=picked,
            baseline=base.metrics,
            overbaked=overbaked(measured, last.step),
        ),
        adapter=session.store.put(session.store.get(last.adapter), f"{trigger}.safetensors"),
        recommended_adapter=session.store.put(as_picked, f"{trigger}_recommended.safetensors"),
        mlflow_run_id=session.tracker.run_id,
        warnings=(*choice.warnings, *doubt, *scale_warnings(scale)),
    )


def _sweep_key(
    training: AdapterRecord, dataset: DatasetRecord, settings: SweepSettings, diffusion: str, embedder: str, seed: int
) -> str:
    adapters = [checkpoint.adapter.sha256 for checkpoint in training.checkpoints]
    parts = [STAGE_VERSION, adapters, dataset.digest, settings.digest(), diffusion, embedder, seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _logged(cell: CellMetrics) -> dict[str, float]:
    names = ("identity", "adherence", "diversity", "copying", "score")
    return {**{name: getattr(cell, name) for name in names}, **cell.detail}


def _heading(cell: CellMetrics) -> str:
    return f"step {cell.checkpoint_step}\n{cell.strength:g}" if cell.strength else "base model\nstrength 0"


def _small(image: Image) -> Image:
    from PIL import Image as pil

    height = round(THUMB * image.height / image.width)
    return image.convert("RGB").resize((THUMB, height), pil.Resampling.LANCZOS)
