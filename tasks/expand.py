"""More views: drawn by the edit model, kept if they are the character. Off unless `expand.count` says how many."""

from __future__ import annotations

from charengine.records import ExpansionRecord, ViewsRecord
from charengine.run.workspace import Workspace
from charengine.stages.expand.stage import EXPAND
from tasks.artifacts import show_expansion
from tasks.stage import stage_task

expand = stage_task(EXPAND)


def expand_views(workspace: Workspace, views: ViewsRecord) -> ExpansionRecord | None:
    """What was drawn and what was kept; None when no more views are wanted."""
    if not workspace.profile.expand.count:
        return None
    expansion = expand(workspace, views)
    show_expansion(workspace, expansion)
    return expansion
