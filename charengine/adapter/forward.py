"""Forward and backward of a frozen layer plus its low-rank path, without building the weight difference.

y = W x + b + scale · up (down x). The backward keeps x and the rank-sized `down x` only, adds the low-rank part to the
base product in the matrix multiply's own epilogue (`addmm`), and may write gradients where the optimizer reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Matrix(Protocol):
    """A layer that is its weight."""

    @property
    def weight(self) -> Tensor:
        """(rank, inputs, …) or (outputs, rank, …)."""


class LowRank(Protocol):
    """What is read of a LyCORIS module, or of a layer from a file."""

    @property
    def lora_down(self) -> Matrix:
        """To the rank."""

    @property
    def lora_up(self) -> Matrix:
        """From the rank."""

    scale: float  # alpha / rank
    multiplier: float
    training: bool


def base_weight(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The frozen layer's weight in the dtype it computes in; float8 storage is scaled back here."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    scale: Tensor | None = getattr(module, "weight_scale", None)
    if scale is not None:
        return weight.to(dtype) * scale.to(dtype)
    return weight if weight.dtype == dtype else weight.to(dtype)


def low_rank_forward(module: nn.Module, lora: LowRank, x: Tensor) -> Tensor:
    """The layer's output with its LyCORIS `LoConModule` added.

    Args:
        module: the frozen `nn.Linear` or `nn.Conv2d`.
        lora: holds `lora_down`, `lora_up`, `scale` (alpha / rank), `multiplier` and, while training with dropout,
            `rank_mask` (rank,), which drops whole components and keeps the expectation.
        x: the layer's input.
    """
    down, up = lora.lora_down.weight, lora.lora_up.weight
    scale = float(lora.scale) * float(lora.multiplier)
    if scale == 0.0:
        return _base_forward(module, x)
    mask = getattr(lora, "rank_mask", None) if lora.training else None
    apply: Callable[..., Tensor] = (_LowRankLinear if isinstance(module, nn.Linear) else _LowRankConv).apply
    sinks = (getattr(down, "grad_sink", None), getattr(up, "grad_sink", None))
    return apply(x, down.to(x.dtype), up.to(x.dtype), _Layer(module, scale, mask, *sinks))


@dataclass(frozen=True)
class _Layer:
    """What one call needs besides tensors that autograd follows."""

    module: nn.Module
    scale: float
    mask: Tensor | None
    down_sink: Tensor | None
    up_sink: Tensor | None


def plain_forward(module: nn.Module, lora: Any, x: Tensor) -> Tensor:
    """The same with plain operations and autograd's own backward, for torch.compile."""
    out = _base_forward(module, x)
    down, up = lora.lora_down.weight.to(x.dtype), lora.lora_up.weight.to(x.dtype)
    scale = float(lora.scale) * float(lora.multiplier)
    if isinstance(module, nn.Linear):
        return out + F.linear(F.linear(x, down), up) * scale
    layer: Any = module
    return out + F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up) * scale


def tlora_forward(lora: Any, x: Tensor) -> Tensor:
    """LyCORIS' T-LoRA, with a mask for each sample: base + scale · (P λ Q − P₀ λ₀ Q₀) x, both under the mask."""
    mask = getattr(lora, "timestep_mask", None) if lora.training else None

    def path(down: Tensor, weights: Tensor, up: Tensor) -> Tensor:
        inner = lora.op(x, down.to(x.dtype))
        places = (1, -1, 1, 1) if lora.isconv else (*[1] * (x.dim() - 1), -1)
        inner = inner * weights.to(x.dtype).view(places)
        if mask is not None:
            rows = (len(x), -1, 1, 1) if lora.isconv else (len(x), *[1] * (x.dim() - 2), mask.shape[1])
            inner = inner * mask.to(x.dtype).view(rows)
        out: Tensor = lora.op(inner, up.to(x.dtype))
        return out

    change = path(lora.q_layer.weight, lora.lambda_layer, lora.p_layer.weight)
    change = change - path(lora.base_q, lora.base_lambda, lora.base_p)
    out: Tensor = lora.org_forward(x) + change * (lora.scale * lora.multiplier)
    return out


def _base_forward(module: nn.Module, x: Tensor) -> Tensor:
    weight = base_weight(module, x.dtype)
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, module.bias)
    layer: Any = module
    out: Tensor = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    return out


class _LowRankLinear(torch.autograd.Function):
    """Linear layer with a low-rank path."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, layer: _Layer) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.t()
        if layer.mask is not None:
            inner = inner * layer.mask.to(inner.dtype)
        out = _base_forward(layer.module, x)
        out.view(-1, out.shape[-1]).addmm_(inner, up.t(), alpha=layer.scale)
        ctx.save_for_backward(rows, inner, down, up)
        ctx.layer, ctx.x_shape = layer, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, down, up = ctx.saved_tensors
        layer: _Layer = ctx.layer
        grad_rows = grad.reshape(-1, grad.shape[-1])
        grad_inner = grad_rows @ up  # over scale, which the products below bring in
        if layer.mask is not None:
            grad_inner = grad_inner.mul_(layer.mask.to(grad_inner.dtype))
        grad_up = _product(grad_rows.t(), inner, layer.scale, layer.up_sink)
        grad_down = _product(grad_inner.t(), rows, layer.scale, layer.down_sink)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_rows @ base_weight(layer.module, grad.dtype)
            grad_x = grad_x.addmm_(grad_inner, down, alpha=layer.scale).view(ctx.x_shape)
        return grad_x, grad_down, grad_up, None


class _LowRankConv(torch.autograd.Function):
    """Convolution with a low-rank path: `down` has the layer's own kernel, `up` is 1×1, a product over the channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, layer: _Layer) -> Tensor:
        module: Any = layer.module
        inner = F.conv2d(x, down, None, module.stride, module.padding).contiguous()
        if layer.mask is not None:
            inner = inner.mul_(layer.mask.to(inner.dtype).view(1, -1, 1, 1))
        out = _base_forward(module, x).contiguous()
        matrix = up.flatten(1).expand(len(x), -1, -1)
        out.flatten(2).baddbmm_(matrix, inner.flatten(2), alpha=layer.scale)
        ctx.save_for_backward(x, inner, down, up)
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, down, up = ctx.saved_tensors
        layer: _Layer = ctx.layer
        module: Any = layer.module
        grad = grad.contiguous()
        grad_inner = torch.matmul(up.flatten(1).t() * layer.scale, grad.flatten(2)).view(inner.shape)
        grad_up = torch.bmm(grad.flatten(2), inner.flatten(2).transpose(1, 2)).sum(0).mul_(layer.scale).view(up.shape)
        if layer.mask is not None:
            grad_inner = grad_inner.mul_(layer.mask.to(grad_inner.dtype).view(1, -1, 1, 1))
        needs_x: bool = ctx.needs_input_grad[0]
        grad_x, grad_down = _conv_backward(grad_inner, x, down, module.stride, module.padding, for_x=needs_x)
        if needs_x:
            weight = base_weight(module, grad.dtype)
            base = _conv_backward(grad, x, weight, module.stride, module.padding, for_weight=False)[0]
            grad_x = base.add_(grad_x)
        return grad_x, _sunk(grad_down, layer.down_sink), _sunk(grad_up, layer.up_sink), None


def _product(left: Tensor, right: Tensor, scale: float, sink: Tensor | None) -> Tensor | None:
    """scale · left @ right, added to `sink` in the multiply's epilogue where there is one."""
    if sink is None:
        return (left @ right).mul_(scale)
    sink.addmm_(left, right, alpha=scale)
    return None


def _sunk(grad: Tensor, sink: Tensor | None) -> Tensor | None:
    if sink is None:
        return grad
    sink.add_(grad)
    return None


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, for_x: bool = True, for_weight: bool = True
) -> tuple[Any, Any]:
    result = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (for_x, for_weight, False)
    )
    return result[0], result[1]
