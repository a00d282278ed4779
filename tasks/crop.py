"""The views: three figures cut out of the sheet."""

from __future__ import annotations

from charengine.records import SheetRecord, ViewsRecord
from charengine.run import steps
from charengine.run.workspace import Workspace
from tasks.artifacts import show_picture
from tasks.stage import as_task


def crop_views(workspace: Workspace, sheet: SheetRecord) -> ViewsRecord:
    """Front, side and back."""
    views = steps.views(as_task, workspace, sheet)
    if views.overlay:
        show_picture(workspace, "boxes", views.overlay)
    for view in views.views:
        show_picture(workspace, view.view, view.image)
    return views
