"""Figures from a CUDA graph, when training data are drawn on CUDA.

Building figures is about nine thousand tiny operations, whatever the batch: launched one by one they take longer than
drawing. Captured once as a graph they run without the host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from charengine.embedded import figure
from charengine.embedded.solids import SolidBatch

log = logging.getLogger(__name__)

Built = tuple[SolidBatch, dict[str, torch.Tensor]]
_LEAST_ROWS = 64


class Constants(TorchFunctionMode):
    """Makes every `torch.tensor` and `torch.as_tensor` of plain numbers once: a copy from the host ends a capture."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor) or isinstance(args[0], torch.Tensor):
            return func(*args, **kwargs)
        key = repr((args, kwargs))
        if key not in self.kept:
            self.kept[key] = func(*args, **kwargs)
        return self.kept[key]


class GraphedFigures:
    """`figure.build_figures` by replaying a CUDA graph, one for each power of two rows; same arguments and results."""

    def __init__(self) -> None:
        self.constants = Constants()
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, Built]] = {}
        self.eager = False

    def __call__(self, indices: torch.Tensor, pose: torch.Tensor) -> Built:
        """The solids and faces of `indices` (n, n_traits) in `pose` (n,)."""
        n, rows = len(indices), _LEAST_ROWS
        while rows < n:
            rows *= 2
        if not self.eager and rows not in self.captured:
            try:
                self.captured[rows] = self._capture(rows, indices, pose)
            except RuntimeError as error:
                log.warning("figures cannot be captured (%s); they are built eagerly from here on", str(error)[:300])
                self.eager = True
        if self.eager:
            return figure.build_figures(indices, pose)
        graph, kept_indices, kept_pose, (solids, face) = self.captured[rows]
        kept_indices[:n].copy_(indices)
        kept_pose[:n].copy_(pose)
        graph.replay()
        # Copies: the next replay writes over the graph's own results.
        copied = SolidBatch(**{name: value[:n].clone() for name, value in solids.__dict__.items()})
        return copied, {name: value[:n].clone() for name, value in face.items()}

    def _capture(
        self, rows: int, indices: torch.Tensor, pose: torch.Tensor
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, Built]:
        device = indices.device
        kept_indices = indices[:1].repeat(rows, 1)
        kept_pose = pose[:1].repeat(rows)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), self.constants:
            with torch.cuda.stream(stream):
                figure.build_figures(kept_indices, kept_pose)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                built = figure.build_figures(kept_indices, kept_pose)
        return graph, kept_indices, kept_pose, built
