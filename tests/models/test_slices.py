"""What a packed layer unpacks at once, and what it copies at each call."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from charengine.models import quantised
from charengine.models.quantised import Packed, PackedLinear, rotate


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_gguf_head_is_unpacked_in_slices_and_gives_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(70, 64, generator=torch.Generator().manual_seed(0)).numpy()
    data = torch.from_numpy(gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0))
    packed = Packed(data, "Q8_0", (70, 64))
    layer = PackedLinear(packed, torch.randn(70) if bias else None, torch.float32)
    x = torch.randn(2, 5, 64)
    wanted = functional.linear(x, packed.unpack(), layer.bias)
    asked: list[int] = []
    whole = quantised.unpack

    def unpack(data: torch.Tensor, packing: str, dtype: torch.dtype) -> torch.Tensor:
        found = whole(data, packing, dtype)
        asked.append(found.numel())
        return found

    monkeypatch.setattr(quantised, "unpack", unpack)
    assert torch.allclose(layer(x), wanted, atol=1e-5) and asked == [70 * 64]
    monkeypatch.setattr(quantised, "WHOLE", 1000)
    monkeypatch.setattr(quantised, "SLICE", 16 * 64 + 5)
    asked.clear()
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    assert max(asked) == 16 * 64 and sum(asked) == 70 * 64


def test_the_head_of_qwen_is_larger_than_what_is_unpacked_whole_and_the_edit_models_layers_are_not() -> None:
    assert 152064 * 3584 > quantised.WHOLE > 18432 * 3072 > quantised.SLICE


def test_the_rotation_is_put_where_it_is_used_once_and_not_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate(torch.ones(2, 32), 16)
    monkeypatch.setattr(quantised, "hadamard", lambda size: pytest.fail("made and copied anew"))
    rotate(torch.ones(4, 64), 16)
