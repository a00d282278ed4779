"""Views of a painted doll, and a store of their own."""

from __future__ import annotations

import pytest
from run_samples import sample_dataset

from charengine.records import ViewsRecord


@pytest.fixture
def views(store) -> ViewsRecord:
    return sample_dataset(store).views
