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
