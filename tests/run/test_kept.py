"""What is kept of a stage can be looked for: by a command that asks whether there is anything to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stage_samples import counted, workspace_in

from charengine.machine.home import Home
from charengine.run.running import NotKept, kept, key_of, run


def test_what_is_kept_can_be_looked_for_without_making_or_mending_anything(tmp_path: Path) -> None:
    workspace = workspace_in(Home(tmp_path / "home"))
    stage, calls = counted()
    with pytest.raises(NotKept):
        kept(stage, workspace)
    record = run(stage, workspace)
    key = key_of(stage, workspace)
    kept_file = workspace.home.store / "results" / f"{key}.json"
    os.utime(kept_file, (1, 1))
    assert kept(stage, workspace) == record
    assert kept_file.stat().st_mtime > 1  # in use, for `prune`
    assert [(fact.key, fact.cached) for fact in workspace.facts] == [(key, False), (key, True)]
    workspace.refresh = frozenset({"crop"})
    with pytest.raises(NotKept):
        kept(stage, workspace)
    workspace.refresh = frozenset()
    blob = workspace.home.store / "sha256" / record.html.sha256[:2] / record.html.sha256
    blob.write_bytes(b"gape")
    with pytest.raises(NotKept):
        kept(stage, workspace)
    assert blob.read_bytes() == b"gape" and len(calls) == 1 and len(workspace.facts) == 2
