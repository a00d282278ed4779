"""Stage 3, expand: more views drawn from the sheet's, those kept that are the character."""

from __future__ import annotations

from charengine.records import ExpansionRecord, ViewsRecord
from charengine.stage import Given, Stage


def _work(given: Given, views: ViewsRecord) -> ExpansionRecord:
    from charengine.stages.expand.expand import expand_views

    models = given.models
    return expand_views(views, given.character, given.settings, models.editor, models.embedder, given.store)


EXPAND = Stage(
    name="expand",
    version=3,
    makes=ExpansionRecord,
    work=_work,
    settings="expand",
    character=("prompt", "class_noun"),
    models=("editor", "embedder"),
    seeded=True,
    gpu=True,
)
