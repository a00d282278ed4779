"""Qwen2.5-VL's vision tower sees the same with its windows side by side."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from charengine.models.vision_windows import put_windows_side_by_side, rows_by_length


@pytest.fixture
def tower() -> Any:
    """Three layers, the second over whole pictures, the others over windows of 4x4 patches."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    config = Qwen2_5_VLVisionConfig(
        depth=3, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=24, patch_size=4, window_size=16,
        fullatt_block_indexes=[1],
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa").eval()


def test_pictures_of_several_sizes_are_seen_as_window_by_window_in_a_few_products(
    tower: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = torch.tensor([[1, 10, 6], [1, 4, 14]])  # windows of 16, 8 and 4 patches
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(1))
    products: list[int] = []
    attention = functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *others: torch.Tensor, **how: Any) -> torch.Tensor:
        products.append(len(query))
        return attention(query, *others, **how)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        wanted = tower(pixels, grid_thw=grid).pooler_output
        one_by_one = len(products)
        put_windows_side_by_side(SimpleNamespace(model=SimpleNamespace(visual=tower)))
        for _ in range(2):  # bounds of an earlier forward are not taken for this one's
            products.clear()
            found = tower(pixels, grid_thw=grid).pooler_output
            assert torch.allclose(found, wanted, atol=1e-5)
    assert one_by_one > 20 and len(products) == 8 and max(products) > 2
    assert not torch.allclose(tower(pixels.flip(0), grid_thw=grid).pooler_output, wanted, atol=1e-2)


def test_windows_of_one_length_are_rows_of_one_table_and_empty_ones_of_none() -> None:
    rows = rows_by_length(torch.tensor([0, 2, 5, 5, 7]))
    assert [one.tolist() for one in rows] == [[[0, 1], [5, 6]], [[2, 3, 4]]]
