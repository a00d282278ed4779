"""What lies between a model's products and convolutions, in one pass over memory each: Triton on CUDA, plain torch elsewhere.

GEGLU forward and backward (of the projection alone, which gives back the activation too, so that it need not be stored), and group
norm with what stands beside it. torch's group norm gives a group to one of the card's cores: with 32 groups of a large picture
three quarters of an H200 stand still.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charengine.machine import kernels

BLOCK = 1024
PIECE = 8192  # of a group, whose mean one program finds
ROW = 4096  # of a channel, that one program writes


def geglu(projected: Tensor) -> Tensor:
    """(rows, 2 n) → (rows, n): left half times the exact GELU of the right half."""
    if _use_triton(projected):
        rows, width = projected.shape[0], projected.shape[1] // 2
        out = projected.new_empty(rows, width)
        _kernels().geglu_forward[(-(-out.numel() // BLOCK),)](projected, out, out.numel(), width, BLOCK=BLOCK)
        return out
    left, gate = projected.chunk(2, dim=-1)
    return left * F.gelu(gate)


def geglu_backward(grad: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the projection (rows, 2 n), and the activation again (rows, n)."""
    if _use_triton(projected):
        out, change = torch.empty_like(grad), torch.empty_like(projected)
        grid, width = (-(-out.numel() // BLOCK),), projected.shape[1] // 2
        _kernels().geglu_backward[grid](grad, projected, out, change, out.numel(), width, BLOCK=BLOCK)
        return change, out
    left, gate = projected.chunk(2, dim=-1)
    activated = F.gelu(gate)
    density = torch.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
    slope = 0.5 * (1 + torch.erf(gate / math.sqrt(2))) + gate * density
    return torch.cat([grad * activated, grad * left * slope], dim=-1), left * activated


def group_norm(x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, silu: bool = False) -> Tensor:
    """`norm` of x + shift, then SiLU where asked for; without gradients.

    Args:
        x: (n, channels, ...).
        norm: with weight and bias.
        shift: (n, channels), added to all of a channel.
        silu: x · sigmoid(x) of what comes out.

    Returns:
        Contiguous, of x's shape and dtype; in float32 inside, and rounded once.
    """
    x = x.contiguous()
    if _use_triton(x):
        return _group_norm(x, norm, shift, silu)
    shifted = x if shift is None else x + shift.view(*shift.shape, *[1] * (x.ndim - 2))
    normed = F.group_norm(shifted, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(normed) if silu else normed


def _group_norm(x: Tensor, norm: nn.GroupNorm, shift: Tensor | None, silu: bool) -> Tensor:
    """By three kernels: each piece's mean and spread, each group's from those, the values."""
    rows, channels, plane = x.shape[0], x.shape[1], x[0, 0].numel()
    groups, wide = rows * norm.num_groups, channels // norm.num_groups
    pieces = -(-wide * plane // PIECE)
    parts = torch.empty(groups, pieces, 2, device=x.device)
    found, out = torch.empty(groups, 2, device=x.device), torch.empty_like(x)
    added = x if shift is None else shift.contiguous()
    own = _kernels()
    own.group_pieces[(groups, pieces)](
        x, added, parts, wide * plane, plane, wide, SHIFTED=shift is not None, PIECE=PIECE, num_warps=8
    )
    own.group_whole[(groups,)](parts, found, wide * plane, pieces, norm.eps, PIECE=PIECE, PIECES=_power(pieces))
    own.group_values[(rows * channels, -(-plane // ROW))](
        x, added, found, norm.weight, norm.bias, out, plane, channels, wide,
        SHIFTED=shift is not None, SILU=silu, ROW=min(ROW, _power(plane)),
    )  # fmt: skip
    return out


def _power(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()


def _use_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64 and tensor.is_contiguous() and _triton_works(tensor.device)


@functools.cache
def _triton_works(device: torch.device) -> bool:
    tried = torch.zeros(2, 32, device=device)

    def trial() -> None:
        _kernels().geglu_forward[(1,)](tried, tried.new_empty(2, 16), 32, 16, BLOCK=BLOCK)

    return kernels.work(trial, "GEGLU and group norms")


def _kernels() -> Any:
    from charengine.models import triton_kernels

    return triton_kernels
