"""Weights as they lie in small files: matrices in 8 bits with a scale a row, half the room of fp16."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SCALE = "/scale"  # behind the name of the matrix that it belongs to


def packed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices as int8 and a float32 scale for each row (of all dimensions behind the first); the rest as it is."""
    import torch

    kept: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if value.ndim < 2:
            kept[name] = value
            continue
        rows = value.detach().float().flatten(1)
        scale = rows.abs().amax(1).clamp_min(1e-8) / 127
        kept[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape)
        kept[name + SCALE] = scale
    return kept


def opened(kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `packed`, to the rounding; floating point comes as float32, from files that were never packed too."""
    state = {}
    for name, value in kept.items():
        if name + SCALE in kept:
            state[name] = value.float() * kept[name + SCALE].reshape(-1, *[1] * (value.ndim - 1))
        elif not name.endswith(SCALE):
            state[name] = value.float() if value.is_floating_point() else value
    return state
