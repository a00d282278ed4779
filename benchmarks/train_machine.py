"""What the cases of `train_step.py` run on: device, U-Net, sizes, recipe and clock."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

LARGE, VIEW = (1024, 1024), (320, 1024)
CAP_GIB = 11.5


class Machine:
    """Device, U-Net and sizes of a case."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from benchmarks.random_sdxl import SDXL, TINY

        self.tiny, self.device, self.out, self.work = arguments.tiny, arguments.device, arguments.out, arguments.work
        self.cuda = self.device.startswith("cuda")
        self.config = TINY if self.tiny else SDXL
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.steps = 4 if self.tiny else 20
        if not self.cuda:
            torch.set_num_threads(1)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """An image size, an eighth of it when tiny."""
        return (size[0] // 8 // 32 * 32 or 32, size[1] // 8) if self.tiny else size

    def settings(self, **changes: Any) -> Any:
        """The recipe."""
        from charengine.config import TrainSettings

        recipe: dict[str, Any] = {"rank": 32, "alpha": 4, "conv_rank": 16, "conv_alpha": 4, "optimizer": "adafactor"}
        recipe |= {"learning_rate": 3e-4, "steps": 400, "budget_gib": CAP_GIB + 0.5, "caption_dropout": 0.0}
        if self.tiny:
            recipe |= {"rank": 4, "conv_rank": 2, "steps": 6, "checkpoints": 2}
        return TrainSettings(**(recipe | changes))

    def diffusion(self, weights: str = "", tiny: bool = False) -> Any:
        """The random model."""
        from benchmarks.random_sdxl import TINY, RandomSDXL

        return RandomSDXL(TINY if tiny else self.config, self.device, self.dtype, weights)

    def store(self) -> Any:
        """An empty store."""
        from charengine.store import Store

        return Store(tempfile.mkdtemp(dir=self.work))

    def setup(self, size: tuple[int, int], diffusion: Any = None, **changes: Any) -> Any:
        """Everything ready to step at a size under the memory cap."""
        import torch

        from benchmarks.random_sdxl import three_views
        from charengine.stages.train.data import encode_dataset
        from charengine.stages.train.plan import memory_cap
        from charengine.stages.train.setup import Setup

        settings, store = self.settings(**changes), self.store()
        diffusion = diffusion or self.diffusion()
        data = encode_dataset(three_views(store, *self.size(size)), settings, diffusion, store)
        with memory_cap(settings.budget_gib, torch.device(self.device)):
            return Setup(diffusion, settings, data, 0, None, fresh=True)

    def times(self, step: Callable[[int], None], count: int, warm: int = 2) -> list[float]:
        """Milliseconds of each call, with device events on CUDA."""
        import torch

        for i in range(warm):
            step(i)
        if not self.cuda:
            found = []
            for i in range(count):
                start = time.perf_counter()
                step(warm + i)
                found.append(1000 * (time.perf_counter() - start))
            return found
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for i in range(count):
            step(warm + i)
            marks[i + 1].record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]

    def peak(self) -> float:
        """GiB the allocator has held at most."""
        import torch

        return torch.cuda.max_memory_reserved() / 2**30 if self.cuda else 0.0
