"""Qwen2.5-VL's vision tower with windows of one length side by side in one product.

transformers computes attention window by window where flash-attn is not installed: 330 small products in each of 32 layers for
eight pictures, 8.5 of the 15 seconds in which a sweep's pictures are read (lab notes, 2026-12-01). The sums are the same.
"""

from __future__ import annotations

from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

_rows: Any = WeakTensorKeyDictionary()  # every layer of a forward is given one of two tensors of bounds


def put_windows_side_by_side(encoder: Any) -> None:
    """Let the vision tower's layers compute so from now on.

    Args:
        encoder: a `Qwen2_5_VLForConditionalGeneration`.
    """
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

    for layer in encoder.model.visual.modules():
        if isinstance(layer, Qwen2_5_VLVisionAttention):
            layer.forward = MethodType(_attend, layer)


def rows_by_length(bounds: Tensor) -> list[Tensor]:
    """For each length of a window, the tokens of all windows that have it, (windows, length), on the bounds' device.

    Args:
        bounds: (windows + 1,) cumulative lengths, from 0.
    """
    places = bounds.tolist()
    starts: dict[int, list[int]] = {}
    for start, end in pairwise(places):
        if end > start:
            starts.setdefault(end - start, []).append(start)
    return [
        torch.tensor(own, device=bounds.device)[:, None] + torch.arange(length, device=bounds.device)
        for length, own in starts.items()
    ]


def _attend(
    layer: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
) -> Tensor:
    """`Qwen2_5_VLVisionAttention.forward`: (tokens, width) to the same."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    tokens = len(hidden_states)
    query, key, value = layer.qkv(hidden_states).reshape(tokens, 3, layer.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    if cu_seqlens not in _rows:
        _rows[cu_seqlens] = rows_by_length(cu_seqlens)
    seen = torch.empty_like(value)
    for rows in _rows[cu_seqlens]:
        # each (windows, heads, length, width of a head)
        q, k, v = (one[rows].transpose(1, 2) for one in (query, key, value))
        seen[rows] = functional.scaled_dot_product_attention(q, k, v, scale=layer.scaling).transpose(1, 2)
    attended: Tensor = layer.proj(seen.reshape(tokens, -1))
    return attended
