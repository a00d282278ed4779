"""The report: one self-contained page, made from records alone."""

from __future__ import annotations

from charengine.records import ReportRecord, RunRecord
from charengine.run.keys import digest, stage_key
from charengine.run.workspace import Workspace
from charengine.stages.report import page as engine
from tasks.stage import run_stage, stage_task

NOT_CONTENT = {"stages", "mlflow_run_id", "prefect_flow_run_id"}  # how a run went, not what it made


def write_report(workspace: Workspace, run: RunRecord) -> ReportRecord:
    """The page; also kept with the MLflow run."""
    report = run_stage(report_task, report_key(run), workspace, run)
    workspace.tracker.log_bytes(workspace.store.get(report.html), "report/report.html")
    return report


def report_key(run: RunRecord) -> str:
    """Everything the page shows, except how long it took and what was cached this time."""
    return stage_key("report", engine.STAGE_VERSION, inputs=[digest(run.model_dump(mode="json", exclude=NOT_CONTENT))])


@stage_task("report")
def report_task(key: str, workspace: Workspace, run: RunRecord) -> ReportRecord:
    """Write the page."""
    return engine.write_report(run, workspace.store)
