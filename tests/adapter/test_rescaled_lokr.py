"""A LoKr is rescaled in its first factor, whole or split: loaders do not agree about its alpha."""

from __future__ import annotations

import pytest
import torch

from charengine.adapter.network import load_adapter, rescale, save_adapter

STEM = "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("first", "scaled"),
    [
        ({"lokr_w1": torch.ones(2, 2)}, "lokr_w1"),
        ({"lokr_w1_a": torch.ones(2, 1), "lokr_w1_b": torch.ones(1, 2)}, "lokr_w1_a"),
    ],
    ids=["whole", "split"],
)
@pytest.mark.parametrize(
    "second", [{"lokr_w2": torch.ones(3, 3)}, {"lokr_w2_a": torch.ones(3, 1), "lokr_w2_b": torch.ones(1, 3)}]
)
def test_the_first_factor_alone_is_multiplied(
    first: dict[str, torch.Tensor], scaled: str, second: dict[str, torch.Tensor]
) -> None:
    parts = {**first, **second, "alpha": torch.tensor(4.0)}
    data = save_adapter({f"{STEM}.{part}": value for part, value in parts.items()}, {})
    found = load_adapter(rescale(data, 0.5))[0]
    assert {key.removeprefix(f"{STEM}."): value.flatten()[0].item() for key, value in found.items()} == {
        part: (4.0 if part == "alpha" else 0.5 if part == scaled else 1.0) for part in parts
    }
