"""What every run of a flow does first: messages to Prefect's page, the workspace, the MLflow run."""

from __future__ import annotations

import logging

from prefect import runtime
from prefect.settings import PREFECT_UI_URL

from charengine.run.workspace import Workspace


def track(workspace: Workspace) -> None:
    """Open the workspace's MLflow run, tagged with the flow run; and let the engine's messages reach Prefect's page."""
    engine = logging.getLogger("charengine")
    if engine.level == logging.NOTSET:  # Prefect hands on the engine's messages but leaves their level at WARNING
        engine.setLevel(logging.INFO)
    workspace.track(_tags())


def flow_run_id() -> str | None:
    """Prefect's id of the run this is called in."""
    run_id = runtime.flow_run.id
    return str(run_id) if run_id else None


def _tags() -> dict[str, str]:
    """How MLflow and Prefect find each other's run."""
    run_id, ui = flow_run_id() or "", PREFECT_UI_URL.value()
    return {
        "prefect.flow_run_id": run_id,
        "prefect.flow_run_name": str(runtime.flow_run.name or ""),
        "prefect.flow_run_url": f"{ui}/runs/flow-run/{run_id}" if ui else "",
    }
