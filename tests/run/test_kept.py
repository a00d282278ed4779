"""What is kept of a stage, looked for by who would not make it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from stage_samples import Model, counted

from charengine.config import Character
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile
from charengine.run.running import NotKept, kept, key_of, run
from charengine.run.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    who = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul")
    made = Workspace(who, load_profile("embedded", []), Home(tmp_path / "home"))
    made.__dict__["models"] = SimpleNamespace(diffusion=Model("diffusion"), captioner=Model("captioner"))
    return made


def test_what_is_kept_can_be_looked_for_without_making_or_mending_anything(workspace: Workspace) -> None:
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
