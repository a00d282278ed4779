"""The pipeline: from one sentence to a tested character adapter. Read `make_character` first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from charengine import files
from charengine.errors import EngineError
from charengine.machine.known_runs import note_run
from charengine.records import (
    AdapterRecord,
    DatasetRecord,
    ExpansionRecord,
    ExtraView,
    ReportRecord,
    RunRecord,
    RunResult,
    SheetRecord,
    SweepRecord,
    ViewsRecord,
)
from charengine.run import folder, steps
from charengine.run.result import Written, run_record, run_result
from charengine.run.retraining import Attempt, until_right
from charengine.run.steps import Runner
from charengine.run.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """How the stages are run, and who is told: a flow's are Prefect tasks that show what they made; `steps_by` gives plain ones.

    Args:
        sheet: and the other stages, each called with the workspace and what it takes from those before.
        register: told of the pick.
        record: gives the run's record, whose stages are all noted, as it is written.
        tell: told of the whole run, once its folder holds all but `result.json`.
        deliver: given the folder when that is complete.
    """

    sheet: Callable[[Workspace], SheetRecord]
    views: Callable[[Workspace, SheetRecord], ViewsRecord]
    expansion: Callable[[Workspace, ViewsRecord], ExpansionRecord | None]
    dataset: Callable[[Workspace, ViewsRecord, tuple[ExtraView, ...], Path], tuple[DatasetRecord, str]]
    training: Callable[[Workspace, DatasetRecord], AdapterRecord]
    sweep: Callable[[Workspace, AdapterRecord, DatasetRecord], SweepRecord]
    report: Callable[[Workspace, RunRecord], ReportRecord]
    register: Callable[[Workspace, SweepRecord, DatasetRecord], object]
    record: Callable[[RunRecord], RunRecord]
    tell: Callable[[Workspace, RunRecord, Path], object]
    deliver: Callable[[Workspace, Path], object]


def steps_by(run: Runner, record: Callable[[RunRecord], RunRecord]) -> Steps:
    """The stages as `run` gives them, and nobody told."""
    return Steps(
        sheet=partial(steps.sheet, run),
        views=partial(steps.views, run),
        expansion=partial(steps.expansion, run),
        dataset=partial(steps.dataset, run),
        training=partial(steps.training, run),
        sweep=partial(steps.sweep, run),
        report=partial(steps.report, run),
        register=lambda workspace, sweep, dataset: None,
        record=record,
        tell=lambda workspace, run, out: None,
        deliver=lambda workspace, out: None,
    )


def make_character(workspace: Workspace, out: Path, each: Steps) -> RunResult:
    """The stages, each handing a record to the next; files are written as soon as they exist."""
    store = workspace.store

    sheet = each.sheet(workspace)
    sheet_path = folder.write_sheet(sheet, out, store)

    views = each.views(workspace, sheet)
    view_paths = folder.write_views(views, out / "views", store)
    if sheet.source == "given":  # what is wrong with it is told before the hours that are spent on it
        for warning in views.warnings:
            log.warning(warning)

    expansion = each.expansion(workspace, views)
    extra_paths = folder.write_expansion(expansion, out / "extra_views", store) if expansion else []
    extras = expansion.kept if expansion else ()

    dataset, caption_key = each.dataset(workspace, views, extras, out)
    caption_paths = folder.write_dataset(dataset, out, store, caption_key)

    def attempt(own: Workspace) -> Attempt:
        training = each.training(own, dataset)
        return Attempt(own, training, each.sweep(own, training, dataset))

    used, training, sweep = until_right(workspace, attempt)
    each.register(used, sweep, dataset)
    adapter_path, recommended_path = folder.write_adapters(sweep, dataset.trigger, out, store)
    folder.write_pictures(sweep, out, store)

    run = run_record(used, sheet, expansion, dataset, training, sweep)
    report = each.report(workspace, run)
    run = each.record(run.model_copy(update={"stages": tuple(workspace.facts)}))
    report_path = folder.write_report(report, run, out, store)
    note_run(workspace.home, out, [workspace.key, *(fact.key for fact in workspace.facts)])
    each.tell(workspace, run, out)

    _put_back([sheet_path], lambda: folder.write_sheet(sheet, out, store))
    _put_back(view_paths, lambda: folder.write_views(views, out / "views", store))
    _put_back(extra_paths, lambda: expansion and folder.write_expansion(expansion, out / "extra_views", store))
    _put_back(caption_paths, lambda: folder.write_dataset(dataset, out, store, caption_key))
    written = Written(sheet_path, view_paths, caption_paths, adapter_path, recommended_path, report_path)
    result = run_result(run, written)
    folder.write_result(result, out)
    each.deliver(workspace, out)
    workspace.keep_whole()
    return result


def _put_back(paths: Iterable[Path], write: Callable[[], object]) -> None:
    """Write again what was written before the training and is gone since: the result names it."""
    gone = [path for path in paths if not files.exists(path)]
    if not gone:
        return
    named = f"{gone[0]}{f' and {len(gone) - 1} more' if len(gone) > 1 else ''}"
    try:
        write()
        log.warning("%s: removed while the run was made, and written again", named)
    except EngineError as error:  # beside edited ones: all else is made, and the same command says what is in its way
        log.warning("%s: removed while the run was made, and not written again: %s", named, error)
