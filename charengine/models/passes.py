"""Passes of SDXL's U-Net, each shape recorded once as a CUDA graph.

A pass is 2,600 kernels, which Python takes as long to launch as an H200 to compute for eight pictures, and longer while other threads
prepare and score. A recording is good for as long as the weights lie where they lay: an adapter merged into them, in their place, is
drawn with by the same recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from charengine.models.fused_layers import fused
from charengine.models.recording import record

MOST = 4  # shapes recorded; their memory is shared


class Passes:
    """What a U-Net predicts.

    Args:
        unet: UNet2DConditionModel.
        recorded: on an NVIDIA GPU a shape's second pass is recorded, and its further ones are replayed.
    """

    def __init__(self, unet: Any, *, recorded: bool) -> None:
        self.unet, self.recorded = unet, recorded and torch.version.hip is None
        self._standing: int | None = None
        self._forget()

    def look(self) -> None:
        """To be called before a picture's first pass: what was recorded with weights that lie elsewhere now is forgotten."""
        standing = _standing(self.unet) if self.recorded else None
        if standing != self._standing:
            self._forget()
        self._standing = standing

    def predict(self, latents: Tensor, t: Tensor, embeds: Tensor, pooled: Tensor, ids: Tensor) -> Tensor:
        """(n, 4, h/8, w/8) of the same inputs as the U-Net's forward; the caller's own."""
        given = (latents, t, embeds, pooled, ids)
        shape = tuple((one.shape, one.dtype) for one in given)
        if self._standing is None or (shape not in self._recorded and shape not in self._seen):
            self._seen.add(shape)
            return self._forward(*given)
        if shape not in self._recorded:
            while len(self._recorded) >= MOST:
                del self._recorded[next(iter(self._recorded))]
            self._recorded[shape] = _Recording(self._forward, given, self._pool)
        return self._recorded[shape].replay(given)

    def give_up(self) -> bool:
        """Give back the memory of what was recorded, and record no more; whether anything was, or was about to be."""
        some, self.recorded, self._standing = self._standing is not None, False, None
        self._forget()
        return some

    def _forget(self) -> None:
        self._recorded: dict[Any, _Recording] = {}
        self._seen: set[Any] = set()  # shapes that have run once, whose kernels are loaded
        self._pool = torch.cuda.graph_pool_handle() if self.recorded and torch.cuda.is_available() else None

    def _forward(self, latents: Tensor, t: Tensor, embeds: Tensor, pooled: Tensor, ids: Tensor) -> Tensor:
        conditions = {"text_embeds": pooled, "time_ids": ids}
        with fused(self.unet):
            predicted: Tensor = self.unet(
                latents, t, encoder_hidden_states=embeds, added_cond_kwargs=conditions, return_dict=False
            )[0]
        return predicted


class _Recording:
    """One shape of pass: inputs and output in memory of its own."""

    def __init__(self, forward: Callable[..., Tensor], given: tuple[Tensor, ...], pool: Any) -> None:
        self._held, self._found = [one.clone() for one in given], torch.empty(0)

        def step() -> None:
            self._found = forward(*self._held)

        self._replay = record(step, "pictures are drawn", pool)

    def replay(self, given: tuple[Tensor, ...]) -> Tensor:
        for held, one in zip(self._held, given, strict=True):
            held.copy_(one)
        self._replay()
        return self._found.clone()  # the next replay writes there


def _standing(unet: Any) -> int | None:
    """Where the weights lie; None where a recording would not hold: hooks that compute or fetch weights, or weights elsewhere."""
    if not all(weight.is_cuda for weight in unet.parameters()):
        return None
    if any("forward" in one.__dict__ or one._forward_pre_hooks or one._forward_hooks for one in unet.modules()):
        return None
    return hash(tuple(weight.data_ptr() for weight in unet.parameters()))
