"""More views: drawn by the edit model, kept if they are the character. Off unless `expand.count` says how many."""

from __future__ import annotations

from charengine.records import ExpansionRecord, ViewsRecord
from charengine.run.keys import stage_key
from charengine.run.workspace import Workspace
from charengine.stages.expand import expand as engine
from tasks.artifacts import show_expansion
from tasks.stage import run_stage, stage_task


def expand_views(workspace: Workspace, views: ViewsRecord) -> ExpansionRecord | None:
    """What was drawn and what was kept; None when no more views are wanted."""
    if not workspace.profile.expand.count:
        return None
    expansion = run_stage(expand_task, expand_key(workspace, views), workspace, views, on_gpu=True)
    show_expansion(workspace, expansion)
    return expansion


def expand_key(workspace: Workspace, views: ViewsRecord) -> str:
    """The views, the character's looks, the settings, both models and the seed."""
    character, models = workspace.character, workspace.models
    return stage_key(
        "expand",
        engine.STAGE_VERSION,
        character={"prompt": character.prompt, "class_noun": character.class_noun},
        settings=workspace.profile.expand,
        inputs=[
            str(views.background),
            *(part for view in views.views for part in (view.view, view.image.sha256, view.alpha.sha256)),
        ],
        models=[models.editor.fingerprint, models.embedder.fingerprint],
        seed=character.seed,
    )


@stage_task("expand")
def expand_task(key: str, workspace: Workspace, views: ViewsRecord) -> ExpansionRecord:
    """Draw and judge, and free both models."""
    models = workspace.models
    try:
        return engine.expand_views(
            views, workspace.character, workspace.profile.expand, models.editor, models.embedder, workspace.store
        )
    finally:
        models.editor.unload()
        models.embedder.unload()
