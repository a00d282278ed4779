"""The report: one self-contained page, made from records alone."""

from __future__ import annotations

from charengine.records import ReportRecord, RunRecord
from charengine.run.workspace import Workspace
from charengine.stages.report.page import REPORT
from tasks.stage import stage_task

report = stage_task(REPORT)


def write_report(workspace: Workspace, run: RunRecord) -> ReportRecord:
    """The page; also kept with the MLflow run."""
    page = report(workspace, run)
    workspace.tracker.log_bytes(workspace.store.get(page.html), "report/report.html")
    return page
