"""Triton kernels; imported only where Triton is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

jit: Callable[[Callable[..., Any]], Any] = triton.jit


@jit
def geglu_forward(
    projected: tl.tensor, out: tl.tensor, count: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """out[r, c] = projected[r, c] · gelu(projected[r, width + c]), in float32 inside."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    row, column = index // width, index % width
    base = row * 2 * width + column
    left = tl.load(projected + base, mask=inside).to(tl.float32)
    gate = tl.load(projected + base + width, mask=inside).to(tl.float32)
    activated = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + index, (left * activated).to(out.dtype.element_ty), mask=inside)


@jit
def geglu_backward(
    grad: tl.tensor, projected: tl.tensor, out: tl.tensor, change: tl.tensor, count: tl.tensor, width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """change = gradient of `projected`; out = the forward's result again."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    row, column = index // width, index % width
    base = row * 2 * width + column
    left = tl.load(projected + base, mask=inside).to(tl.float32)
    gate = tl.load(projected + base + width, mask=inside).to(tl.float32)
    incoming = tl.load(grad + index, mask=inside).to(tl.float32)
    cumulative = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    slope = cumulative + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    activated = gate * cumulative
    tl.store(out + index, (left * activated).to(out.dtype.element_ty), mask=inside)
    tl.store(change + base, (incoming * activated).to(change.dtype.element_ty), mask=inside)
    tl.store(change + base + width, (incoming * left * slope).to(change.dtype.element_ty), mask=inside)


@jit
def group_pieces(
    x: tl.tensor, shift: tl.tensor, parts: tl.tensor, length: tl.tensor, plane: tl.tensor, wide: tl.tensor,
    SHIFTED: tl.constexpr, PIECE: tl.constexpr,
) -> None:  # fmt: skip
    """parts[group, piece] = mean, and sum of squared distances from it, of a piece of a group of `wide` channels of `plane` values."""
    group, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = piece * PIECE + tl.arange(0, PIECE)
    inside = index < length
    value = tl.load(x + group * length + index, mask=inside, other=0.0).to(tl.float32)
    if SHIFTED:
        value += tl.load(shift + group * wide + index // plane, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(length - piece * PIECE, PIECE)
    mean = tl.sum(value, 0) / count
    distance = tl.where(inside, value - mean, 0.0)
    place = parts + (group * tl.num_programs(1) + piece) * 2
    tl.store(place, mean)
    tl.store(place + 1, tl.sum(distance * distance, 0))


@jit
def group_whole(
    parts: tl.tensor, found: tl.tensor, length: tl.tensor, pieces: tl.tensor, eps: tl.tensor,
    PIECE: tl.constexpr, PIECES: tl.constexpr,
) -> None:  # fmt: skip
    """found[group] = mean and 1 / standard deviation of a group, from its pieces (Chan et al. 1983)."""
    group, piece = tl.program_id(0), tl.arange(0, PIECES)
    inside = piece < pieces
    count = tl.where(inside, tl.minimum(length - piece * PIECE, PIECE), 0).to(tl.float32)
    place = parts + (group * pieces + piece) * 2
    means = tl.load(place, mask=inside, other=0.0)
    mean = tl.sum(means * count, 0) / length
    apart = tl.where(inside, means - mean, 0.0)
    squares = tl.load(place + 1, mask=inside, other=0.0) + count * apart * apart
    tl.store(found + group * 2, mean)
    tl.store(found + group * 2 + 1, 1.0 / tl.sqrt(tl.sum(squares, 0) / length + eps))


@jit
def group_values(
    x: tl.tensor, shift: tl.tensor, found: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor,
    plane: tl.tensor, channels: tl.tensor, wide: tl.tensor, SHIFTED: tl.constexpr, SILU: tl.constexpr, ROW: tl.constexpr,
) -> None:  # fmt: skip
    """out = (x + shift − mean) / deviation · weight + bias, then SiLU, of a part of one channel of one row."""
    row, index = tl.program_id(0), tl.program_id(1) * ROW + tl.arange(0, ROW)
    inside, base = index < plane, row.to(tl.int64) * plane
    group, channel = row // wide, row % channels
    mean, scale = tl.load(found + group * 2), tl.load(found + group * 2 + 1)
    if SHIFTED:
        mean -= tl.load(shift + row).to(tl.float32)
    value = tl.load(x + base + index, mask=inside, other=0.0).to(tl.float32) - mean
    value = value * (scale * tl.load(weight + channel).to(tl.float32)) + tl.load(bias + channel).to(tl.float32)
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + base + index, value.to(out.dtype.element_ty), mask=inside)
