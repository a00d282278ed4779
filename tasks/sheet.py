"""The sheet: drawn by the edit model, from a picture if there is one, or taken from a file the user has."""

from __future__ import annotations

from charengine.records import SheetRecord
from charengine.run.workspace import Workspace
from charengine.stages.sheet.draw import DRAWN_SHEET
from charengine.stages.sheet.given import GIVEN_SHEET
from tasks.artifacts import show_picture
from tasks.stage import stage_task

draw = stage_task(DRAWN_SHEET)
take = stage_task(GIVEN_SHEET)


def make_sheet(workspace: Workspace) -> SheetRecord:
    """The character's sheet."""
    sheet = take(workspace, workspace.given) if workspace.given else draw(workspace, *workspace.drawn_from)
    show_picture(workspace, "sheet", sheet.image)
    return sheet
