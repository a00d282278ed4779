"""Host memory that a GPU copies from while Python goes on: whole pages, locked where they are."""

from __future__ import annotations

import contextlib
import itertools
import logging
import weakref
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes; what CUDA's vectorised loads want
PAGE = 4096  # bytes; what the system locks at once
WAYS, WAY_BYTES = 3, 32 * 2**20  # buffers that copies to a GPU go through


class HostCopies:
    """Copies of tensors in one host buffer, page-locked if one of them is a GPU's as long as this lives.

    One buffer: to lock 5 GB in 788 pieces takes seconds. It may be made on a thread while the GPU works: what is copied is as
    it is when the work that was asked for by now is done, and no later work is waited for.

    Attributes:
        copies: of the tensors, in their order; slices of the buffer.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        ends = list(accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors))
        buffer = whole_pages(max([0, *ends]))
        self._device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        if self._device and page_lock(buffer.zero_()):  # pages that are there are locked in a ninth of the time
            unlock_with(self, buffer)
        self.copies = [
            buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip([0, *ends], tensors, strict=False)
        ]
        self.copy(tensors)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether `copy` can take these: as many, of the same shapes and element types."""
        kinds = ([(one.shape, one.dtype) for one in some] for some in (tensors, self.copies))
        return next(kinds) == next(kinds)

    def copy(self, tensors: Sequence[Tensor]) -> None:
        """Copy again, of tensors that have the first ones' shapes; the copies are whole when this returns."""
        if self._device is None:
            for mine, tensor in zip(self.copies, tensors, strict=True):
                mine.copy_(tensor)
            return
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for mine, tensor in zip(self.copies, tensors, strict=True):
                mine.copy_(tensor, non_blocking=True)
        aside.synchronize()


def copied_to(device: torch.device, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on a device, in their order; they are there when work that is asked for next on this stream begins.

    A GPU takes memory that is not page-locked at a fifth of its speed (5 GB in .88 s on an H200, .16 by way of the buffers
    here), and to lock what is copied once takes longer than to copy it.
    """
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    ways = [_Way() for _ in range(WAYS)]
    turns = itertools.cycle(ways)
    try:
        return [_staged(tensor, device, turns) for tensor in tensors]
    finally:
        for way in ways:
            way.close()


class _Way:
    """A locked buffer that pieces of tensors go through, one at a time."""

    def __init__(self) -> None:
        self.buffer = whole_pages(WAY_BYTES).zero_()
        self.locked = page_lock(self.buffer)
        self.free = torch.cuda.Event()

    def send(self, piece: Tensor, there: Tensor) -> None:
        """Bytes on the host to as many on the device."""
        self.free.synchronize()
        mine = self.buffer[: len(piece)].copy_(piece)
        there.copy_(mine, non_blocking=True)
        self.free.record()

    def close(self) -> None:
        """When what it sent has arrived."""
        self.free.synchronize()
        if self.locked:
            _page_unlock(self.buffer)


def _staged(tensor: Tensor, device: torch.device, ways: Iterator[_Way]) -> Tensor:
    if tensor.is_cuda or not tensor.is_contiguous() or type(tensor) not in (Tensor, nn.Parameter):
        return tensor.to(device, non_blocking=True)
    there = torch.empty_like(tensor, device=device)
    pieces = [one.detach().flatten().view(torch.uint8).split(WAY_BYTES) for one in (tensor, there) if one.numel()]
    for piece, target in zip(*pieces, strict=True) if pieces else ():
        next(ways).send(piece, target)
    return there


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
