"""Views of a painted doll, a store of their own, and adapter files that the painter understands."""

from __future__ import annotations

import pytest
from run_samples import sample_dataset
from sweep_samples import Merger

from charengine.records import DatasetRecord
from charengine.stages.sweep import session, sweep
from charengine.store import Store


@pytest.fixture
def dataset(store: Store) -> DatasetRecord:
    return sample_dataset(store)


@pytest.fixture
def known_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter files that the painter understands."""
    monkeypatch.setattr(session, "AdapterMerger", Merger)
    monkeypatch.setattr(sweep, "examine_adapter", lambda unet, data: ())
