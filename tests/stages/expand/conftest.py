"""Views of a painted doll, and a store of their own."""

from __future__ import annotations

import pytest
from run_samples import sample_dataset

from charengine.records import ViewsRecord
from charengine.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def views(store) -> ViewsRecord:
    return sample_dataset(store).views
