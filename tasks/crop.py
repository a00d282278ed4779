"""The views: three figures cut out of the sheet."""

from __future__ import annotations

from charengine.records import SheetRecord, ViewsRecord
from charengine.run.workspace import Workspace
from charengine.stages.crop import CROP
from tasks.artifacts import show_picture
from tasks.stage import stage_task

crop = stage_task(CROP)


def crop_views(workspace: Workspace, sheet: SheetRecord) -> ViewsRecord:
    """Front, side and back."""
    views = crop(workspace, sheet)
    if views.overlay:
        show_picture(workspace, "boxes", views.overlay)
    for view in views.views:
        show_picture(workspace, view.view, view.image)
    return views
