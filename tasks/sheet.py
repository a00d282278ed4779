"""The sheet: drawn by the edit model, or taken from a file the user has."""

from __future__ import annotations

from charengine.records import SheetRecord
from charengine.run.keys import file_digest, stage_key
from charengine.run.workspace import Workspace
from charengine.stages.sheet import draw as engine
from charengine.stages.sheet.given import take_sheet
from tasks.artifacts import show_picture
from tasks.stage import run_stage, stage_task


def make_sheet(workspace: Workspace) -> SheetRecord:
    """The character's sheet."""
    sheet = run_stage(sheet_task, sheet_key(workspace), workspace, on_gpu=workspace.sheet_file is None)
    show_picture(workspace, "sheet", sheet.image)
    return sheet


def sheet_key(workspace: Workspace) -> str:
    """A given sheet counts by content alone; a drawn one by prompt, settings, model and seed."""
    if workspace.sheet_file:
        return stage_key("sheet", engine.STAGE_VERSION, inputs=[file_digest(workspace.sheet_file)])
    character, models = workspace.character, workspace.models
    judge = (
        [models.captioner.fingerprint] if workspace.profile.sheet.ask_model or workspace.profile.sheet.rewrite else []
    )
    return stage_key(
        "sheet",
        engine.STAGE_VERSION,
        character={"prompt": character.prompt, "class_noun": character.class_noun},
        settings=workspace.profile.sheet,
        models=[models.editor.fingerprint, *judge],
        seed=character.seed,
    )


@stage_task("sheet")
def sheet_task(key: str, workspace: Workspace) -> SheetRecord:
    """Draw or take the sheet, and free the edit model."""
    if workspace.sheet_file:
        return take_sheet(workspace.sheet_file, workspace.store)
    models = workspace.models
    try:
        return engine.draw_sheet(
            workspace.character, workspace.profile.sheet, models.editor, workspace.store, captioner=models.captioner
        )
    finally:
        models.editor.unload()
