"""Processes on several cards that train one model together: each on its own pictures, weights averaged every few steps.

Averaging weights instead of gradients (local SGD, Lin et al. 1808.07217) leaves the captured steps as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

EVERY = 4  # steps between two averages


@dataclass(frozen=True)
class Team:
    """One process's place among those that train the same part.

    Attributes:
        rank: 0 writes weights and logs.
        size: processes.
        meeting: a file that they all reach.
    """

    rank: int = 0
    size: int = 1
    meeting: Path | None = None

    @torch.no_grad()
    def average(self, parameters: list[torch.Tensor], step: int, ended: bool) -> bool:
        """Average the weights of all when `step` says so; whether any has ended, which all then do at once."""
        if self.size == 1:
            return ended
        if step % EVERY:
            return False
        from torch import distributed

        if not distributed.is_initialized():
            backend = "nccl" if parameters[0].is_cuda else "gloo"
            distributed.init_process_group(
                backend, init_method=f"file://{self.meeting}", rank=self.rank, world_size=self.size
            )
        flag = torch.tensor([float(ended)], device=parameters[0].device)
        flat = torch.cat([p.flatten() for p in parameters] + [flag])
        distributed.all_reduce(flat)
        flat /= self.size
        parts = flat[:-1].split([p.numel() for p in parameters])
        torch._foreach_copy_(parameters, [part.view_as(p) for part, p in zip(parts, parameters, strict=True)])
        return bool(flat[-1] > 0)
