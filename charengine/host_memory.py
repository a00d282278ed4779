"""Host memory that a GPU copies from while Python goes on: whole pages, locked where they are."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes; what CUDA's vectorised loads want
PAGE = 4096  # bytes; what the system locks at once


class HostCopies:
    """Copies of tensors in one host buffer, page-locked if one of them is a GPU's as long as this lives.

    One buffer: to lock 5 GB in 788 pieces takes seconds.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        ends = list(accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors))
        buffer = whole_pages(max([0, *ends]))
        if any(tensor.is_cuda for tensor in tensors) and page_lock(buffer):
            unlock_with(self, buffer)
        self.copies = [
            buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            for start, tensor in zip([0, *ends], tensors, strict=False)
        ]


def whole_pages(size: int) -> Tensor:
    """At least `size` bytes that share no page with anything else: a page can be locked only once."""
    rounded = -(-size // PAGE) * PAGE
    room = torch.empty(rounded + PAGE, dtype=torch.uint8)
    start = -room.data_ptr() % PAGE
    return room[start : start + rounded]


def page_lock(buffer: Tensor) -> bool:
    """Page-lock a buffer where it is: torch's own pinned allocator rounds sizes up to powers of two and takes five times as long.

    Returns:
        False when the system refuses; copies then work, but are slower and hide behind nothing.
    """
    status = int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0))
    if status:
        _forget_last_error()
        log.warning(
            "could not page-lock %.0f MiB (CUDA error %d): copies will be slower", buffer.numel() / 2**20, status
        )
    return not status


def unlock_with(owner: object, buffer: Tensor) -> None:
    """Undo `page_lock` when `owner` dies, before the memory is freed."""
    weakref.finalize(owner, _page_unlock, buffer).atexit = False


def _page_unlock(buffer: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())


def _forget_last_error() -> None:
    """CUDA keeps a refusal as its last error, and torch would blame the next kernel for it."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")
