"""The report: one self-contained page, made from records alone."""

from __future__ import annotations

from charengine.records import ReportRecord, RunRecord
from charengine.run import steps
from charengine.run.workspace import Workspace
from tasks.stage import as_task


def write_report(workspace: Workspace, run: RunRecord) -> ReportRecord:
    """The page; also kept with the MLflow run."""
    page = steps.report(as_task, workspace, run)
    workspace.tracker.log_bytes(workspace.store.get(page.html), "report/report.html")
    return page
