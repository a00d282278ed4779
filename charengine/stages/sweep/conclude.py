"""The end of a sweep: the pick, the verdict, the adapters and pictures, and every cell's numbers in MLflow."""

from __future__ import annotations

from typing import Any

from charengine.charts.canvas import PilCanvas
from charengine.charts.plots import contact_sheet, trade_off
from charengine.pictures import png
from charengine.records import CellMetrics, CheckpointRecord, PickRecord, SweepRecord
from charengine.stages.sweep.adapters import recommended
from charengine.stages.sweep.cells import Cell
from charengine.stages.sweep.estimate import BASE
from charengine.stages.sweep.pick import choose
from charengine.stages.sweep.session import Session
from charengine.stages.sweep.summary import overbaked, scale_warnings, summarise, with_certainty
from charengine.stages.sweep.verdict import judge_training, unless_it_barely_moves
from charengine.tracking.views import KIND_TAG
from charengine.wording import file_stem


def conclude(session: Session, recipe: dict[str, Any] | None, told: tuple[str, ...]) -> SweepRecord:
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
        verdict=unless_it_barely_moves(judge_training(session.grid, found, session.settings), picked),
        adapter=session.training.checkpoints[-1].adapter.model_copy(
            update={"name": f"{file_stem(trigger)}.safetensors"}
        ),
        recommended_adapter=store.put(as_picked, f"{file_stem(trigger)}_recommended.safetensors"),
        mlflow_run_id=session.tracker.run_id,
        warnings=(*told, *_black(session), *choice.warnings, *doubt, *scale_warnings(session.scale)),
    )


def _black(session: Session) -> tuple[str, ...]:
    """Which cells have pictures that are none."""
    told = []
    for index, cell in sorted(session.cells.items()):
        if cell.black:
            step, strength = session.grid[index]
            place = f"step {step} at strength {strength:g}" if step else "strength 0"
            told.append(
                f"{place}: {cell.black} of {len(cell.thumbs)} pictures are black, as where the U-Net answers with no numbers (NaN), and "
                "count as they are; leave that strength out of sweep.strengths, or train with a lower train.learning_rate"
            )
    return tuple(told)


def log_cells(session: Session) -> None:
    """Child runs of the cells that have none yet."""
    for index, cell in sorted(session.cells.items()):
        if cell.mlflow_run_id is None:
            log_cell(session, index, cell)


def log_cell(session: Session, index: int, cell: Cell) -> None:
    """A child run with a cell's numbers and pictures."""
    step, strength = session.grid[index]
    checkpoint = session.checkpoints.get(step)
    measured = _measure(session, index, cell)
    child = session.tracker.child(
        f"{step} × {strength:g}" if checkpoint else "base model",
        key=f"{session.key}/{step}/{strength:g}",
        params={"checkpoint": step, "strength": strength, **_losses(checkpoint)},
        tags={KIND_TAG: "cell"},
    )
    child.log_metrics(_logged(measured) | {"strength": strength, "checkpoint": step}, step=step)
    sheet = contact_sheet([(_heading(measured), cell.thumbs)], [""] * len(session.prompts), cell.seeds, None)
    child.log_image(sheet, "cell", 0)  # all at one step: MLflow shows them side by side
    child.finish()
    cell.mlflow_run_id = child.run_id


def _measure(session: Session, index: int, cell: Cell) -> CellMetrics:
    """A cell's own numbers."""
    scale = session.scale
    measured = summarise(cell.scores, scale, *session.grid[index])
    more = {"mlflow_run_id": cell.mlflow_run_id} | (
        {"ceiling": scale.ceiling, "sheet_shown": scale.sheet_shown} if index == BASE else {}
    )
    return measured.model_copy(update=more)


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
