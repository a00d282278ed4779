"""One thread, an empty store, and the tiny model of `tiny_sdxl`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_sdxl import FakeDiffusion, make_dataset, tiny_unet


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture
def diffusion():
    return FakeDiffusion()


@pytest.fixture
def dataset(store):
    return make_dataset(store)
