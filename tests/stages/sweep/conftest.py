"""Views of a painted doll, a store of their own, and adapter files that the painter understands."""

from __future__ import annotations

import pytest
from run_samples import sample_dataset
from sweep_samples import Applied, Unet

from charengine.adapter.files import load_adapter
from charengine.records import DatasetRecord
from charengine.stages.sweep import sweep
from charengine.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def dataset(store: Store) -> DatasetRecord:
    return sample_dataset(store)


@pytest.fixture
def known_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter files say in their metadata how long they were trained; that is all the painter needs."""

    def apply(unet: Unet, data: bytes, strength: float = 1.0) -> Applied:
        unet.steps, unet.strength = int(load_adapter(data)[1]["ss_steps"]), strength
        return Applied(unet)

    monkeypatch.setattr(sweep, "apply_adapter", apply)
    monkeypatch.setattr(sweep, "examine_adapter", lambda unet, data: ())
