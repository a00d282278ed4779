"""Training steps as CUDA graphs: a model this small spends its time launching kernels, not running them.

A step is a function of tensors that runs forward and backward and returns numbers to log. On CUDA it is captured once
for each key (a picture size, a text length) and replayed from then on; on a CPU it is simply called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

from charengine.embedded.making.clock import Clock

log = logging.getLogger(__name__)


class GraphedStep:
    """`function(*tensors) -> tuple of tensors`, captured per key on CUDA. Gradients add up in place."""

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]], device: torch.device) -> None:
        self.function, self.device = function, device
        self.captured: dict[Hashable, tuple[Any, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = {}
        self.pool: Any = None
        self.eager = device.type != "cuda"

    def __call__(self, key: Hashable, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the step; the results are valid until the next call with this key."""
        if self.eager:
            return self.function(*tensors)
        if key not in self.captured:
            return self._capture(key, tensors)
        graph, kept, results = self.captured[key]
        for mine, given in zip(kept, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        graph.replay()
        return results

    def milliseconds(self, repeats: int = 5) -> dict[str, float]:
        """Time of a replay by key. Replays add to the gradients: call it after the last update."""
        found = {}
        for key, (graph, _, _) in self.captured.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                graph.replay()
            end.record()
            end.synchronize()
            found[str(key)] = round(start.elapsed_time(end) / repeats, 1)
        return found

    def _capture(self, key: Hashable, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The warm-up runs add their gradients to this step's: three times one batch, once a key."""
        kept = tuple(t.clone() for t in tensors)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.function(*kept)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                results = self.function(*kept)
        except RuntimeError as error:
            log.warning("step %s cannot be captured (%s); it runs eagerly from here on", key, str(error)[:300])
            self.eager = True
            return self.function(*kept)
        self.pool = graph.pool()
        self.captured[key] = (graph, kept, results)
        graph.replay()
        return results


class GraphedOptimiser:
    """Fused AdamW on a time-boxed schedule, with clipping; a step whose gradient is not finite is skipped.

    Gradients are zeroed after the update, never freed: the captured steps add into the same memory.
    """

    def __init__(self, groups: list[dict[str, Any]], clock: Clock, clip: float = 1.0) -> None:
        self.clock, self.clip = clock, clip
        self.parameters = [p for g in groups for p in g["params"]]
        self.device = self.parameters[0].device
        self.peaks = [g["lr"] for g in groups]
        on_cuda = self.device.type == "cuda"
        groups = [{**g, "lr": torch.tensor(float(g["lr"]), device=self.device)} for g in groups]
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True, capturable=on_cuda)
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        self.graph: Any = None
        self.steps = 0

    def step(self) -> None:
        """Clip, update, zero the gradients."""
        share = self.clock.learning_rate()
        for group, peak in zip(self.adamw.param_groups, self.peaks, strict=True):
            group["lr"].fill_(peak * share)
        self.steps += 1
        self.clock.step += 1
        if self.device.type != "cuda" or self.steps <= 3:
            self._update()
            return
        if self.graph is None:
            torch.cuda.synchronize(self.device)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self._update()
        self.graph.replay()

    def _update(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.adamw.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.adamw.grad_scale = None  # type: ignore[attr-defined]
        torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        self.adamw.step()
        torch._foreach_zero_(gradients)
