"""GGUF blocks that we unpack ourselves: the values are gguf's own, and diffusers' to the bit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf import utils

from charengine.models import gguf_blocks
from charengine.models.gguf_blocks import UNPACK
from charengine.models.quantised import unpack

HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # where float16 numbers stand in a block


def blocks_of(packing: str, count: int = 200) -> torch.Tensor:
    """Any bytes are a block, but for its float16 numbers, which shall be finite."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[packing]][1]
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for place in HALVES[packing]:
        halves = rng.normal(0, 0.02, count).astype(np.float16)
        blocks[:, place : place + 2] = halves.view(np.uint8).reshape(count, 2)
    return torch.from_numpy(blocks)


@pytest.mark.parametrize("packing", UNPACK)
def test_the_values_are_gguf_s_own(packing: str) -> None:
    blocks = blocks_of(packing)
    expected = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[packing])
    found = unpack(blocks, packing, torch.float32)
    assert found.shape == (200, 256)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("packing", UNPACK)
def test_a_value_is_rounded_once_as_before(packing: str, dtype: torch.dtype) -> None:
    blocks, kind = blocks_of(packing), gguf.GGMLQuantizationType[packing]
    before = utils.dequantize_functions[kind](blocks, *gguf.GGML_QUANT_SIZES[kind], dtype=torch.float32).to(dtype)
    assert torch.equal(UNPACK[packing](blocks, dtype), before)


@pytest.mark.parametrize("packing", UNPACK)
def test_a_matrix_keeps_its_rows(packing: str) -> None:
    blocks = blocks_of(packing, 6)
    matrix = unpack(blocks.reshape(2, -1), packing, torch.float32)
    assert torch.equal(matrix, unpack(blocks, packing, torch.float32).reshape(2, 768))


def test_nothing_is_copied_from_the_host_for_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is made for each matrix has the host wait for the GPU seventeen hundred times a step."""
    blocks = {packing: blocks_of(packing, 3) for packing in UNPACK}

    def copied(*_: object, **__: object) -> None:
        raise AssertionError("a table was made")

    for made in ("tensor", "as_tensor", "arange", "from_numpy"):
        monkeypatch.setattr(torch, made, copied)
    for packing, some in blocks.items():
        unpack(some, packing, torch.bfloat16)


KERNELS = """
import sys, torch
from charengine.models import gguf_kernels
from charengine.models.gguf_blocks import UNPACK
for packing, blocks in torch.load(sys.argv[1]).items():
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(gguf_kernels.unpacked(packing, blocks, dtype), UNPACK[packing](blocks, dtype)), (packing, dtype)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which CUDA builds of torch bring")
def test_the_kernels_unpack_to_the_same_values(tmp_path: Path) -> None:
    """Interpreted, in a process of its own: Triton decides at import whether it interprets; 5 is no whole number of tiles."""
    torch.save({packing: blocks_of(packing, 5) for packing in UNPACK}, tmp_path / "blocks")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS, tmp_path / "blocks"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]


def stand_in(monkeypatch: pytest.MonkeyPatch, change: float) -> list[str]:
    """Kernels that are said to run, and whose values are off by `change`; the packings they were asked for."""
    asked: list[str] = []

    def unpacked(packing: str, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        asked.append(packing)
        return UNPACK[packing](blocks, dtype) + change

    monkeypatch.setattr(gguf_blocks, "_kernels", lambda: SimpleNamespace(unpacked=unpacked))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(gguf_blocks, "_kernels_work", gguf_blocks._kernels_work.__wrapped__)
    return asked


@pytest.mark.parametrize(("change", "works"), [(0.0, True), (1.0, False)])
def test_kernels_are_used_only_where_they_give_the_same_values(
    change: float, works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = stand_in(monkeypatch, change)
    assert gguf_blocks._kernels_work(torch.device("cpu")) == works
    assert set(asked) == (set(UNPACK) if works else {"Q4_K"})
    assert ("Q4_K is unpacked to other values" in caplog.text) != works


@pytest.mark.gpu
@pytest.mark.parametrize("packing", UNPACK)
def test_on_a_gpu_the_kernels_give_the_same_values(packing: str) -> None:
    blocks = blocks_of(packing, 1001).cuda()
    assert gguf_blocks._kernels_work(blocks.device)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(gguf_blocks.unpack_blocks(packing, blocks, dtype), UNPACK[packing](blocks, dtype))
