"""Views of a painted doll and a store of their own."""

from __future__ import annotations

import pytest
from run_samples import sample_dataset

from charengine.records import DatasetRecord
from charengine.store import Store


@pytest.fixture
def dataset(store: Store) -> DatasetRecord:
    return sample_dataset(store)
