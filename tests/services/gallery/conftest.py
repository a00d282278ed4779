"""A gallery on a home of its own, with a Prefect and an MLflow that are made up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gallery_samples import ADDRESS, MadeUpPrefect, MadeUpTracked, Visit
from run_samples import sample_run
from starlette.testclient import TestClient

from charengine.machine.home import Home
from charengine.records import RunRecord
from charengine.services.gallery.app import create_app
from charengine.services.gallery.parts import Gallery
from charengine.store import Store


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    """A finished run, and the store that holds what it names; made once."""
    folder = tmp_path_factory.mktemp("gallery-sample") / "store"
    return sample_run(Store(folder)), folder


@pytest.fixture
def visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: tuple[RunRecord, Path]) -> Iterator[Visit]:
    """A gallery without any character, on a store that holds the sample's pictures."""
    home, work = Home(tmp_path / "home").create(), tmp_path / "work"
    work.mkdir()
    shutil.copytree(sample[1], home.store, dirs_exist_ok=True)
    monkeypatch.setenv("CHARENGINE_HOME", str(home.root))
    monkeypatch.setenv("CHARENGINE_WORK_FOLDER", str(work))
    prefect, tracked = MadeUpPrefect(), MadeUpTracked()
    gallery = Gallery(home, prefect, tracked, "http://127.0.0.1:4200")
    app: Any = create_app(gallery, (ADDRESS,))
    with TestClient(app, base_url=ADDRESS, follow_redirects=False, raise_server_exceptions=False) as client:
        yield Visit(client, gallery, prefect, tracked, work)
