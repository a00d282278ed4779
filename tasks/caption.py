"""The captions: what each view shows besides the character itself."""

from __future__ import annotations

from charengine.records import DatasetRecord, ExtraView, ViewsRecord
from charengine.run.keys import digest, stage_key
from charengine.run.workspace import Workspace
from charengine.stages import caption as engine
from tasks.artifacts import show_captions
from tasks.stage import run_stage, stage_task


def caption_views(workspace: Workspace, views: ViewsRecord, extras: tuple[ExtraView, ...] = ()) -> DatasetRecord:
    """Views and captions as one dataset."""
    return run_stage(caption_task, caption_key(workspace, views, extras), workspace, views, extras, on_gpu=True)


def show_dataset(workspace: Workspace, dataset: DatasetRecord) -> None:
    """The captions as they will be trained on, edited ones included."""
    show_captions(workspace, dataset)


def caption_key(workspace: Workspace, views: ViewsRecord, extras: tuple[ExtraView, ...] = ()) -> str:
    """The views' pixels and masks, any more views, the character, the caption settings and the captioner."""
    character = workspace.character
    return stage_key(
        "caption",
        engine.STAGE_VERSION,
        character={
            "prompt": character.prompt,
            "class_noun": character.class_noun,
            "trigger": character.trigger,
        },
        settings=workspace.profile.caption,
        inputs=[
            *(part for view in views.views for part in (view.view, view.image.sha256, view.alpha.sha256)),
            *(digest(extra) for extra in extras),
        ],
        models=[workspace.models.captioner.fingerprint],
    )


@stage_task("caption")
def caption_task(
    key: str, workspace: Workspace, views: ViewsRecord, extras: tuple[ExtraView, ...] = ()
) -> DatasetRecord:
    """Caption the views, and free the captioner."""
    captioner = workspace.models.captioner
    try:
        return engine.caption_views(
            views, workspace.character, workspace.profile.caption, captioner, workspace.store, extras
        )
    finally:
        captioner.unload()
