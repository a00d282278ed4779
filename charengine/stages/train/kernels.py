"""GEGLU forward and backward in one pass each: Triton on CUDA, plain torch elsewhere.

Only the projection is kept for the backward, which gives back the activation too, so that it need not be stored.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from charengine.machine import kernels

BLOCK = 1024


def geglu(projected: Tensor) -> Tensor:
    """(rows, 2 n) → (rows, n): left half times the exact GELU of the right half."""
    if _use_triton(projected):
        rows, width = projected.shape[0], projected.shape[1] // 2
        out = projected.new_empty(rows, width)
        _kernels()[0][(-(-out.numel() // BLOCK),)](projected, out, out.numel(), width, BLOCK=BLOCK)
        return out
    left, gate = projected.chunk(2, dim=-1)
    return left * F.gelu(gate)


def geglu_backward(grad: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the projection (rows, 2 n), and the activation again (rows, n)."""
    if _use_triton(projected):
        out, change = torch.empty_like(grad), torch.empty_like(projected)
        width = projected.shape[1] // 2
        _kernels()[1][(-(-out.numel() // BLOCK),)](grad, projected, out, change, out.numel(), width, BLOCK=BLOCK)
        return change, out
    left, gate = projected.chunk(2, dim=-1)
    activated = F.gelu(gate)
    density = torch.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
    slope = 0.5 * (1 + torch.erf(gate / math.sqrt(2))) + gate * density
    return torch.cat([grad * activated, grad * left * slope], dim=-1), left * activated


def _use_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64 and tensor.is_contiguous() and _triton_works(tensor.device)


@functools.cache
def _triton_works(device: torch.device) -> bool:
    tried = torch.zeros(2, 32, device=device)

    def trial() -> None:
        _kernels()[0][(1,)](tried, tried.new_empty(2, 16), 32, 16, BLOCK=BLOCK)

    return kernels.work(trial, "GEGLU")


@functools.cache
def _kernels() -> tuple[Any, Any]:
    from charengine.stages.train import triton_kernels

    return triton_kernels.geglu_forward, triton_kernels.geglu_backward
