"""What every run of a flow does first: messages to Prefect's page, the workspace, the MLflow run."""

from __future__ import annotations

import logging

from prefect import runtime
from prefect.settings import PREFECT_UI_URL

from charengine.machine.home import Home
from charengine.run.request import CheckedRun
from charengine.run.workspace import Workspace
from charengine.tracking.open_tracker import open_tracker

PROJECT = "charengine"  # the MLflow experiment


def open_workspace(run: CheckedRun, home: Home, title: str) -> Workspace:
    """The workspace of a run, its MLflow run open under this title."""
    engine = logging.getLogger("charengine")
    if engine.level == logging.NOTSET:  # Prefect hands on the engine's messages but leaves their level at WARNING
        engine.setLevel(logging.INFO)
    workspace = Workspace(run, home)
    workspace.tracker = open_tracker(
        home, project=PROJECT, name=title, key=workspace.key, params=workspace.params(), tags=_tags(workspace)
    )
    return workspace


def flow_run_id() -> str | None:
    """Prefect's id of the run this is called in."""
    run_id = runtime.flow_run.id
    return str(run_id) if run_id else None


def _tags(workspace: Workspace) -> dict[str, str]:
    """How MLflow and Prefect find each other's run, and what users filter by."""
    run_id, ui = flow_run_id() or "", PREFECT_UI_URL.value()
    return {
        "character": workspace.character.name,
        "trigger": workspace.character.trigger,
        "profile": workspace.profile.name,
        "prefect.flow_run_id": run_id,
        "prefect.flow_run_name": str(runtime.flow_run.name or ""),
        "prefect.flow_run_url": f"{ui}/runs/flow-run/{run_id}" if ui else "",
    }
