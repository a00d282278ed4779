"""What happens inside a stage of a benchmark: seconds of single functions, and what a GPU does meanwhile."""

from __future__ import annotations

import functools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

KINDS = {  # kernels by what they compute, the first that fits
    "copies": re.compile(r"memcpy|memset", re.IGNORECASE),
    "attention": re.compile(r"flash|fmha|attention|sdpa|mha_", re.IGNORECASE),
    "convolutions": re.compile(r"conv|implicit|wgrad|dgrad|nhwc|nchw", re.IGNORECASE),
    "matrix products": re.compile(r"gemm|gemv|nvjet|cutlass|xmma|splitk|cublas", re.IGNORECASE),
}
SHOWN = 8  # of the kernels, by their seconds


class Stopwatch:
    """Seconds and calls of functions that the product calls itself, the GPU waited for before and after each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.longest: Counter[str] = Counter()

    @contextmanager
    def on(self, **functions: tuple[Any, str]) -> Iterator[Stopwatch]:
        """Watch `name=(class or object, "method")`, until left."""
        before = {name: (owner, method, owner.__dict__.get(method)) for name, (owner, method) in functions.items()}
        for name, (owner, method) in functions.items():
            setattr(owner, method, self.watched(name, getattr(owner, method)))
        try:
            yield self
        finally:
            for owner, method, own in before.values():
                delattr(owner, method) if own is None else setattr(owner, method, own)

    def watched(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, timed under a name."""

        @functools.wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self._wait()
                took = time.perf_counter() - start
                self.seconds[name] += took
                self.longest[name] = max(self.longest[name], took)
                self.calls[name] += 1

        return timed

    def facts(self) -> dict[str, float]:
        """Seconds, calls and the longest call of everything that was called."""
        return {
            f"{name}{what}": round(facts[name], 2)
            for name in self.seconds
            for what, facts in (("_s", self.seconds), ("_calls", self.calls), ("_longest_s", self.longest))
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Kernels:
    """What a GPU did between `start` and `stop`: seconds by kind of kernel, and how long it waited; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._profiler: Any = None

    def start(self) -> None:
        """Begin; what was asked of the GPU before is waited for."""
        if self.device.type == "cuda" and self._profiler is None:
            torch.cuda.synchronize(self.device)
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()
            self._began = time.perf_counter()

    def stop(self) -> dict[str, Any]:
        """End, and say what it was."""
        if self._profiler is None:
            return {}
        torch.cuda.synchronize(self.device)
        wall = time.perf_counter() - self._began
        self._profiler.stop()
        events = self._profiler.profiler.kineto_results.events()
        self._profiler = None
        return summary(
            [(event.name(), event.start_ns(), event.duration_ns()) for event in events if on_gpu(event)], wall
        )

    def of(self, work: Callable[[], Any]) -> dict[str, Any]:
        """What the GPU does during `work`."""
        self.start()
        work()
        return self.stop()


def on_gpu(event: Any) -> bool:
    """Whether an event is a kernel or a copy."""
    return str(event.device_type()).endswith("CUDA") and event.duration_ns() > 0


def summary(kernels: list[tuple[str, int, int]], wall: float) -> dict[str, Any]:
    """Seconds by kind and of the longest kernels; `waiting` is when nothing ran at all.

    Args:
        kernels: name, start and duration in nanoseconds.
        wall: seconds from the first to the last.
    """
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for name, _, length in kernels:
        kind = next((kind for kind, pattern in KINDS.items() if pattern.search(name)), "other kernels")
        kinds[kind] += length
        names[name[:80]] += length
    busy, end = 0, 0
    for _, start, length in sorted(kernels, key=lambda kernel: kernel[1]):
        busy += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return {
        "wall_s": round(wall, 3),
        "by_kind_s": {kind: round(seconds / 1e9, 4) for kind, seconds in kinds.most_common()},
        "waiting_s": round(max(0.0, wall - busy / 1e9), 4),
        "kernels": len(kernels),
        "longest_s": {name: round(seconds / 1e9, 4) for name, seconds in names.most_common(SHOWN)},
    }
