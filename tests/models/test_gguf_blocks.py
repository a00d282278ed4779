"""GGUF blocks that we unpack ourselves: the values are gguf's own, and diffusers' to the bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf import utils

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
