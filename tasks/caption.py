"""The captions: what each view shows besides the character itself."""

from __future__ import annotations

from pathlib import Path

from charengine.records import DatasetRecord, ExtraView, ViewsRecord
from charengine.run.folder import take_edits
from charengine.run.running import key_of
from charengine.run.workspace import Workspace
from charengine.stages.caption import CAPTION
from tasks.artifacts import show_captions
from tasks.stage import stage_task

caption = stage_task(CAPTION)


def caption_views(
    workspace: Workspace, views: ViewsRecord, extras: tuple[ExtraView, ...], out: Path
) -> tuple[DatasetRecord, str]:
    """Views and captions as one dataset, with what the user edited in the run's folder; and the stage's key."""
    key = key_of(CAPTION, workspace, views, *extras)
    dataset = take_edits(caption(workspace, views, *extras), out, key)
    show_captions(workspace, dataset)
    return dataset, key
