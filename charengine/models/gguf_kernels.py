"""Triton kernels that unpack GGUF's commonest packings in one pass each; imported only where Triton is installed.

A packed byte is read and a weight written, once. Sums and products are those of `gguf_blocks.py`, in its order and not fused,
so that the values are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

jit: Callable[[Callable[..., Any]], Any] = triton.jit

TILE = 4  # blocks of 256 weights that one program unpacks


def unpacked(packing: str, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 256) in `dtype` of contiguous blocks (n, bytes of a block) of uint8 on a GPU."""
    out = torch.empty(len(blocks), 256, dtype=dtype, device=blocks.device)
    KERNELS[packing][(-(-len(blocks) // TILE),)](blocks, out, len(blocks), TILE=TILE, enable_fp_fusion=False)
    return out


@jit
def _half(first: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """The float16 number in two bytes, which may lie at any address, as float32."""
    low = tl.load(first, mask=inside, other=0).to(tl.int16)
    high = tl.load(first + 1, mask=inside, other=0).to(tl.int16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@jit
def _four_or_five_bits(
    blocks: tl.tensor, out: tl.tensor, count: tl.tensor, SIZE: tl.constexpr, FIFTH: tl.constexpr, TILE: tl.constexpr
) -> None:
    """Q4_K and Q5_K: two float16, eight scales and leasts of six bits, the fifth bits of Q5_K, nibbles."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None, None]
    group, place = tl.arange(0, 8)[None, :, None], tl.arange(0, 32)[None, None, :]
    base, inside = blocks + block * SIZE, block < count
    low = tl.load(base + 4 + group % 4, mask=inside, other=0).to(tl.int32)
    high = tl.load(base + 8 + group % 4, mask=inside, other=0).to(tl.int32)
    rest = tl.load(base + 12 + group % 4, mask=inside, other=0).to(tl.int32)
    scale = tl.where(group < 4, low & 63, (rest & 15) | ((low >> 2) & 48)).to(tl.float32)
    least = tl.where(group < 4, high & 63, (rest >> 4) | ((high >> 2) & 48)).to(tl.float32)
    scale, least = _half(base, inside) * scale, _half(base + 2, inside) * least
    there = inside & (group < 8) & (place < 32)
    nibbles = tl.load(base + (SIZE - 128) + (group // 2) * 32 + place, mask=there, other=0).to(tl.int32)
    value = (nibbles >> ((group % 2) * 4)) & 15
    if FIFTH:
        fifth = tl.load(base + 16 + place, mask=inside & (place < 32), other=0).to(tl.int32)
        value |= ((fifth >> group) & 1) << 4
    weight = value.to(tl.float32) * scale - least
    tl.store(out + block * 256 + group * 32 + place, weight.to(out.dtype.element_ty), mask=there)


@jit
def _q4_k(blocks: tl.tensor, out: tl.tensor, count: tl.tensor, TILE: tl.constexpr) -> None:
    _four_or_five_bits(blocks, out, count, 144, False, TILE)


@jit
def _q5_k(blocks: tl.tensor, out: tl.tensor, count: tl.tensor, TILE: tl.constexpr) -> None:
    _four_or_five_bits(blocks, out, count, 176, True, TILE)


@jit
def _q6_k(blocks: tl.tensor, out: tl.tensor, count: tl.tensor, TILE: tl.constexpr) -> None:
    """Nibbles, two bits more of each weight, sixteen scales of int8, one float16."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None, None]
    row, place = tl.arange(0, 8)[None, :, None], tl.arange(0, 32)[None, None, :]  # 32 weights a row, four rows a half
    base, inside = blocks + block * 210, block < count
    half, part = row // 4, row % 4
    there = inside & (row < 8) & (place < 32)
    nibbles = tl.load(base + half * 64 + (part % 2) * 32 + place, mask=there, other=0).to(tl.int32)
    more = tl.load(base + 128 + half * 32 + place, mask=there, other=0).to(tl.int32)
    value = (((nibbles >> ((part // 2) * 4)) & 15) | (((more >> (part * 2)) & 3) << 4)) - 32
    scale = tl.load(base + 192 + row * 2 + place // 16, mask=there, other=0).to(tl.int8, bitcast=True)
    weight = value.to(tl.float32) * (_half(base + 208, inside) * scale.to(tl.float32))
    tl.store(out + block * 256 + row * 32 + place, weight.to(out.dtype.element_ty), mask=there)


KERNELS = {"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
