"""The adapters of a run say the whole of what was asked for, so that a file alone is enough to make the character again.

A stage's own files say what the stage read, and nothing else, so that equal keys make equal bytes. How the sheet was drawn and the views
were cut and described, and the name of the base checkpoint's file, stand in no file of training; the run adds them when all is made.
"""

from __future__ import annotations

import json

from charengine.adapter.header import header_of, with_metadata
from charengine.adapter.metadata import told_by
from charengine.models.base_names import NAME
from charengine.records import Ref, SweepRecord
from charengine.run.workspace import Workspace


def with_whole_recipe(sweep: SweepRecord, workspace: Workspace) -> SweepRecord:
    """The sweep with both its adapters saying the whole config of the run that made them; equal runs give equal files.

    A run that starts from somebody else's adapter did not make it: its files stay as the sweep wrote them.
    """
    if workspace.starts_from:
        return sweep
    told = {name: _told(getattr(sweep, name), workspace) for name in ("adapter", "recommended_adapter")}
    return sweep.model_copy(update=told)


def with_base_name(adapter: Ref, workspace: Workspace) -> Ref:
    """An adapter that was trained here, with the name of the base checkpoint's file."""
    named, store = _base_name(workspace), workspace.store
    return store.put(with_metadata(store.get(adapter), named), adapter.name) if named else adapter


def _told(adapter: Ref, workspace: Workspace) -> Ref:
    data = workspace.store.get(adapter)
    recipe = {**told_by(header_of(data).metadata).recipe, **workspace.recipe()}
    told = {**_base_name(workspace), "charengine.recipe": json.dumps(recipe, sort_keys=True)}
    return workspace.store.put(with_metadata(data, told), adapter.name)


def _base_name(workspace: Workspace) -> dict[str, str]:
    names = workspace.models.diffusion.base_names
    return {NAME: names[NAME]} if NAME in names else {}
