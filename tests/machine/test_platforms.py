"""Apple's GPUs, AMD's, and machines without a compiler: what the code does there, on stand-ins, for none of them is at hand."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from charengine.config import TrainSettings
from charengine.errors import ConfigError, ran_out_of_memory
from charengine.machine.locks import gpu_slot
from charengine.models import kernels
from charengine.models.quantised import FP8, float8_values
from charengine.services import doctor
from charengine.stages.train.plan import _check


@pytest.fixture(autouse=True)
def forget_trials():
    kernels._triton_works.cache_clear()
    yield
    kernels._triton_works.cache_clear()


def test_without_a_c_compiler_the_trainer_goes_on_without_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **more: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    launcher = type("Launcher", (), {"__getitem__": lambda self, grid: fails})()
    monkeypatch.setattr(kernels, "_kernels", lambda: SimpleNamespace(geglu_forward=launcher))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with caplog.at_level(logging.WARNING):
        assert not kernels._triton_works(torch.device("cpu"))
        assert not kernels._triton_works(torch.device("cpu"))
    assert caplog.text.count("Failed to find C compiler") == 1 and "more" not in caplog.text


def test_a_kernel_that_runs_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []
    launcher = type("Launcher", (), {"__getitem__": lambda self, grid: lambda *given, **more: ran.append(given)})()
    monkeypatch.setattr(kernels, "_kernels", lambda: SimpleNamespace(geglu_forward=launcher))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert kernels._triton_works(torch.device("cpu")) and len(ran) == 1


@pytest.mark.parametrize("packing", FP8)
def test_float8_is_looked_up_where_the_device_has_none_with_the_same_numbers(packing: str) -> None:
    data = torch.randint(0, 256, (5, 7), dtype=torch.uint8)
    found, wanted = float8_values(packing)[data.int()], data.view(FP8[packing]).float()
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num()) and len(set(float8_values(packing).tolist())) > 240


def test_a_mac_has_one_gpu_and_so_one_slot(tmp_path: Path) -> None:
    with gpu_slot(tmp_path, torch.device("mps")):
        assert [path.name for path in tmp_path.iterdir()] == ["gpu-mps.lock"]


def test_a_gpu_without_a_uuid_is_held_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    with gpu_slot(tmp_path, torch.device("cuda", 3)):
        assert [path.name for path in tmp_path.iterdir()] == ["gpu-3.lock"]


def test_float8_in_training_is_refused_on_a_mac() -> None:
    settings = TrainSettings(fp8_base=True)
    _check(settings, torch.device("cpu"))
    with pytest.raises(ConfigError, match="Apple's GPUs have no float8"):
        _check(settings, torch.device("mps"))


def test_the_driver_is_named_as_each_vendor_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "6.4.4")
    assert doctor._driver() == "ROCm 6.4.4"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "nvidia" not in doctor._driver()


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 20.13 GB, max allowed: 20.13 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_every_devices_word_for_too_little_memory_is_understood(error: Exception, wanted: bool) -> None:
    assert ran_out_of_memory(error) is wanted
