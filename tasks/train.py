"""The adapter: trained on the dataset, in its own MLflow run, resumable under its stage key."""

from __future__ import annotations

from charengine.records import AdapterRecord, DatasetRecord
from charengine.run import steps
from charengine.run.workspace import Workspace
from charengine.stage import Progress
from tasks.artifacts import show_training
from tasks.live import LiveProgress
from tasks.page import stage_line
from tasks.stage import as_task, how


def train_adapter(workspace: Workspace, dataset: DatasetRecord) -> AdapterRecord:
    """Checkpoints and curves."""
    on_page = stage_line("train")
    live = LiveProgress(f"{workspace.slug}-training", workspace.character.name, "training", on_page)
    before = workspace.on_step

    def on_step(progress: Progress) -> None:
        live.on_step(progress)
        if before:
            before(progress)

    workspace.on_step = on_step
    try:
        with live.following():
            training = steps.training(as_task, workspace, dataset)
    finally:
        workspace.on_step = before
    on_page(how(workspace.facts[-1]))  # the last step stood there
    show_training(workspace, training)
    return training
