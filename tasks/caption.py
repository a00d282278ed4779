"""The captions: what each view shows besides the character itself."""

from __future__ import annotations

from pathlib import Path

from charengine.records import DatasetRecord, ExtraView, ViewsRecord
from charengine.run import steps
from charengine.run.workspace import Workspace
from tasks.artifacts import show_captions
from tasks.stage import as_task


def caption_views(
    workspace: Workspace, views: ViewsRecord, extras: tuple[ExtraView, ...], out: Path
) -> tuple[DatasetRecord, str]:
    """Views and captions as one dataset, with what the user edited in the run's folder; and the stage's key."""
    dataset, key = steps.dataset(as_task, workspace, views, extras, out)
    show_captions(workspace, dataset)
    return dataset, key
