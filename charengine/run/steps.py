"""The stages of a character, each with what it takes from those before: the same in a flow, in a notebook, and where a run is looked for.

What runs a stage is handed in: `running.run`, a Prefect task (tasks/stage.py), a studio that remembers, or `running.kept`, which makes
nothing. So there is one way from one stage's record to the next one's key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from charengine.records import (
    AdapterRecord,
    DatasetRecord,
    ExpansionRecord,
    ExtraView,
    Record,
    ReportRecord,
    RunRecord,
    SheetRecord,
    SweepRecord,
    ViewsRecord,
)
from charengine.run.folder import take_edits
from charengine.run.keys import Input
from charengine.run.running import key_of
from charengine.run.unchanged import changed
from charengine.run.whole_recipe import with_whole_recipe
from charengine.run.workspace import Workspace
from charengine.stage import Stage
from charengine.stages.caption import CAPTION
from charengine.stages.crop import CROP
from charengine.stages.expand.stage import EXPAND
from charengine.stages.report.page import REPORT
from charengine.stages.sheet.draw import DRAWN_SHEET
from charengine.stages.sheet.given import GIVEN_SHEET
from charengine.stages.sweep.stage import SWEEP
from charengine.stages.train.stage import TRAIN

R = TypeVar("R", bound=Record)


class Runner(Protocol):
    """Gives what a stage makes of its inputs."""

    def __call__(self, stage: Stage[R], workspace: Workspace, /, *inputs: Input) -> R:
        """The stage's record, however it was come by."""
        ...


def sheet(run: Runner, workspace: Workspace) -> SheetRecord:
    """The sheet: the file that was given, else drawn, from a picture if there is one.

    Raises:
        BadInput: the file is another one than the run was begun with.
    """
    if workspace.given:
        if workspace.has_another_sheet():
            raise changed(str(workspace.given))
        return run(GIVEN_SHEET, workspace, workspace.given)
    return run(DRAWN_SHEET, workspace, *workspace.drawn_from)


def views(run: Runner, workspace: Workspace, made: SheetRecord) -> ViewsRecord:
    """The views: three figures cut out of the sheet."""
    return run(CROP, workspace, made)


def expansion(run: Runner, workspace: Workspace, cut: ViewsRecord) -> ExpansionRecord | None:
    """More views; None when no more are wanted."""
    return run(EXPAND, workspace, cut) if workspace.profile.expand.count else None


def dataset(
    run: Runner, workspace: Workspace, cut: ViewsRecord, extras: tuple[ExtraView, ...], out: Path
) -> tuple[DatasetRecord, str]:
    """Views and captions as one dataset, with what the user edited in the run's folder; and the caption stage's key."""
    key = key_of(CAPTION, workspace, cut, *extras)
    return take_edits(run(CAPTION, workspace, cut, *extras), out, key), key


def training(run: Runner, workspace: Workspace, on: DatasetRecord) -> AdapterRecord:
    """The adapter and its checkpoints."""
    return run(TRAIN, workspace, on)


def sweep(run: Runner, workspace: Workspace, trained: AdapterRecord, on: DatasetRecord) -> SweepRecord:
    """Cells, pictures and the pick; both its adapters say the whole request."""
    return with_whole_recipe(run(SWEEP, workspace, trained, on), workspace)


def report(run: Runner, workspace: Workspace, record: RunRecord) -> ReportRecord:
    """The page."""
    return run(REPORT, workspace, record)
