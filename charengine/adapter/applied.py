"""One layer of an adapter file at work: its parts held as they are, its effect computed when the layer runs.

LoRA and LoCon run through `low_rank_forward`. For LoHa, LoKr and DoRA the difference is built in each call, so that only the factors
stay in memory. At strength s the layer computes with W + s · (W' − W), W' the weight as adapted: what ComfyUI and A1111 do, for DoRA too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charengine.adapter.forward import base_weight, low_rank_forward
from charengine.adapter.parts import Parts, difference, scale_of, with_norms


class AppliedLayer(nn.Module):
    """A layer's adapter from a file.

    Args:
        layer: the frozen `nn.Linear` or `nn.Conv2d`; its forward is replaced until `remove`.
        parts: as `checked_parts` gives them for this layer.
    """

    multiplier = 1.0

    def __init__(self, layer: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.layer = [layer]  # in a list: not a module of this one's
        self.scale = scale_of(parts)
        self.names = {part: part.replace(".", "_") for part in parts if part != "alpha"}
        for part, name in self.names.items():
            self.register_buffer(name, parts[part], persistent=False)
        forward = _low_rank if "lora_down.weight" in parts and "dora_scale" not in parts else _built
        layer.forward = partial(forward, layer, self)

    def parts(self) -> Parts:
        """The tensors under their parts' names, where and as they are now."""
        return {part: getattr(self, name) for part, name in self.names.items()}

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        """The layer's weight with the adapter at a strength, in the weight's element type."""
        return merged_weight(weight, self.parts(), strength, self.scale)

    def restore(self) -> None:
        """Give the layer its own forward back."""
        self.layer[0].__dict__.pop("forward", None)


def merged_weight(weight: Tensor, parts: Parts, strength: float, scale: float | None = None) -> Tensor:
    """A layer's weight with an adapter at a strength, in the weight's element type.

    Args:
        weight: the base's.
        parts: as `checked_parts` gives them for this layer.
        strength: 0 the base, 1 as trained.
        scale: alpha / rank from an alpha of full precision; None: from these parts.
    """
    scale = scale_of(parts) if scale is None else scale
    change = difference(parts, tuple(weight.shape), scale).to(weight.dtype)
    if "dora_scale" not in parts:
        return weight.add(change, alpha=strength)
    adapted = with_norms(weight + change, parts["dora_scale"].to(weight.dtype))
    return weight + strength * (adapted - weight)


class _Matrix:
    """What `low_rank_forward` reads of a LyCORIS matrix."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


class _LowRank:
    """What `low_rank_forward` reads of a LyCORIS module."""

    training = False

    def __init__(self, applied: AppliedLayer) -> None:
        parts = applied.parts()
        self.lora_down, self.lora_up = _Matrix(parts["lora_down.weight"]), _Matrix(parts["lora_up.weight"])
        self.scale, self.multiplier = applied.scale, applied.multiplier


def _low_rank(layer: nn.Module, applied: AppliedLayer, x: Tensor) -> Tensor:
    return low_rank_forward(layer, _LowRank(applied), x)


@torch.no_grad()
def _built(layer: Any, applied: AppliedLayer, x: Tensor) -> Tensor:
    """The base's output and, beside it, that of the difference: at strength 0 the base itself, to the bit."""
    weight = base_weight(layer, x.dtype)
    linear = isinstance(layer, nn.Linear)
    out = F.linear(x, weight, layer.bias) if linear else F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    if applied.multiplier == 0:
        return out
    parts = applied.parts()
    if "dora_scale" in parts:
        change = applied.merged(weight, applied.multiplier) - weight
    else:
        change = difference(parts, tuple(weight.shape), applied.scale).to(x.dtype) * applied.multiplier
    return out + (F.linear(x, change) if linear else F.conv2d(x, change, None, layer.stride, layer.padding))
