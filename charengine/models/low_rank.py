"""LoRAs beside the layers of a frozen model: nothing is merged, so packed weights stay packed, streamed ones stay on the host,
and one of the LoRAs can be turned on and off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

Adapter = dict[
    str, tuple[torch.Tensor, torch.Tensor]
]  # layer name → down (r, in), up (out, r) with the strength already in


def add_adapter(module: nn.Module, adapter: Adapter, *, switched: bool = False) -> None:
    """Add a LoRA to a model.

    Args:
        module: the transformer, loaded.
        adapter: what is added to its layers, and fits them.
        switched: `switch_adapter` turns it on and off; what was added before stays on.
    """
    layers: dict[str, Any] = dict(module.named_modules())
    for name, (down, up) in adapter.items():
        _hang(layers[name], down, up, switched)


def switch_adapter(module: nn.Module, on: bool) -> None:
    """Compute with the LoRA that was added to be switched, or without."""
    layers: list[Any] = list(module.modules())
    for layer in layers:
        if hasattr(layer, "lora_enabled"):
            layer.lora_enabled = on


def _hang(layer: Any, down: torch.Tensor, up: torch.Tensor, switched: bool) -> None:
    """Put the matrices beside a layer, where they move with it; a switched one must come last."""
    held = getattr(layer, "packed", None)
    place = layer.weight if held is None else held
    dtype = place.dtype if held is None else layer.dtype
    down, up = down.to(place.device, dtype), up.to(place.device, dtype)
    if hasattr(layer, "lora_down"):
        down, up = torch.cat([layer.lora_down, down]), torch.cat([layer.lora_up, up], dim=1)
    else:
        layer.lora_enabled, layer.lora_always = True, 0
        layer.register_forward_hook(_added)
    layer.register_buffer("lora_down", down, persistent=False)
    layer.register_buffer("lora_up", up, persistent=False)
    if not switched:
        layer.lora_always = down.shape[0]


def _added(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """The layer's output with what its LoRAs add: all of them, or only those that are never switched off."""
    rank = layer.lora_down.shape[0] if layer.lora_enabled else layer.lora_always
    if not rank:
        return output
    x = inputs[0]
    down, up = layer.lora_down[:rank].to(x.dtype), layer.lora_up[:, :rank].to(x.dtype)
    return output + functional.linear(functional.linear(x, down), up)
