"""The sheet: drawn by the edit model, from a picture if there is one, or taken from a file the user has."""

from __future__ import annotations

from charengine.records import SheetRecord
from charengine.run import steps
from charengine.run.workspace import Workspace
from tasks.artifacts import show_picture
from tasks.stage import as_task


def make_sheet(workspace: Workspace) -> SheetRecord:
    """The character's sheet."""
    sheet = steps.sheet(as_task, workspace)
    show_picture(workspace, "sheet", sheet.image)
    return sheet
