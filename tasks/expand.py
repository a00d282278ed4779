"""More views: drawn by the edit model, kept if they are the character. Off unless `expand.count` says how many."""

from __future__ import annotations

from charengine.records import ExpansionRecord, ViewsRecord
from charengine.run import steps
from charengine.run.workspace import Workspace
from tasks.artifacts import show_expansion
from tasks.stage import as_task


def expand_views(workspace: Workspace, views: ViewsRecord) -> ExpansionRecord | None:
    """What was drawn and what was kept; None when no more views are wanted."""
    expansion = steps.expansion(as_task, workspace, views)
    if expansion:
        show_expansion(workspace, expansion)
    return expansion
