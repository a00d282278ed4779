"""The adapters of a run say the whole of what was asked for, so that a file alone is enough to make the character again.

A stage's own files say what the stage read, and nothing else, so that equal keys make equal bytes. How the sheet was drawn and the views
were cut and described stands in no file of training; the run adds it when all is made.
"""

from __future__ import annotations

import json

from charengine.adapter.header import header_of, with_metadata
from charengine.adapter.metadata import told_by
from charengine.records import Ref, SweepRecord
from charengine.run.workspace import Workspace
from charengine.store import Store


def with_whole_recipe(sweep: SweepRecord, workspace: Workspace) -> SweepRecord:
    """The sweep with both its adapters saying the whole config of the run that made them; equal runs give equal files.

    A run that starts from somebody else's adapter did not make it: its files stay as the sweep wrote them.
    """
    if workspace.starts_from:
        return sweep
    asked, store = workspace.recipe(), workspace.store
    told = {name: _told(getattr(sweep, name), asked, store) for name in ("adapter", "recommended_adapter")}
    return sweep.model_copy(update=told)


def _told(adapter: Ref, asked: dict[str, object], store: Store) -> Ref:
    data = store.get(adapter)
    recipe = {**told_by(header_of(data).metadata).recipe, **asked}
    return store.put(with_metadata(data, {"charengine.recipe": json.dumps(recipe, sort_keys=True)}), adapter.name)
