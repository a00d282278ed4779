"""The views: three figures cut out of the sheet."""

from __future__ import annotations

from charengine.records import SheetRecord, ViewsRecord
from charengine.run.keys import stage_key
from charengine.run.workspace import Workspace
from charengine.stages import crop as engine
from tasks.artifacts import show_picture
from tasks.stage import run_stage, stage_task


def crop_views(workspace: Workspace, sheet: SheetRecord) -> ViewsRecord:
    """Front, side and back."""
    views = run_stage(crop_task, crop_key(workspace, sheet), workspace, sheet)
    show_picture(workspace, "boxes", views.overlay)
    for view in views.views:
        show_picture(workspace, view.view, view.image)
    return views


def crop_key(workspace: Workspace, sheet: SheetRecord) -> str:
    """The sheet's pixels and the crop's settings; no model, no randomness."""
    return stage_key("crop", engine.STAGE_VERSION, settings=workspace.profile.crop, inputs=[sheet.image.sha256])


@stage_task("crop")
def crop_task(key: str, workspace: Workspace, sheet: SheetRecord) -> ViewsRecord:
    """Cut the views."""
    return engine.crop_views(sheet, workspace.profile.crop, workspace.store)
