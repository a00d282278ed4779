"""Attention by kernels that need no plan: cuDNN's, torch's choice from Hopper on, plans every new shape in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PLANNING_PAYS = 2000  # steps of a training; planning takes cuDNN 4.3 s and saves 2.0 ms a step (three views on an H200)


@contextmanager
def unplanned_attention(steps: int = 0) -> Iterator[None]:
    """Attention without cuDNN meanwhile, unless so many steps are made that its planning pays; also a decorator.

    A sweep of 64 pictures on an H200 takes 10 s less so: 5 of its first pictures, 4 of the first question about one. Where torch
    does not prefer cuDNN (before Hopper), nothing changes.

    Args:
        steps: of a training.
    """
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and steps >= PLANNING_PAYS)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
