"""Adapted networks that the cases share."""

from __future__ import annotations

import pytest
from adapter_samples import tiny_unet


@pytest.fixture(scope="module")
def skeleton():
    return tiny_unet("meta")


@pytest.fixture
def unet():
    return tiny_unet()
