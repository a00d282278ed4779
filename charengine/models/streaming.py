"""A model larger than the GPU: some blocks stay there, the others pass through two slots, copied one block ahead.

Each of their weights lie in one page-locked buffer on the host. Streamed blocks are spread evenly between the resident
ones, so the copy of the next hides behind the arithmetic of those before it: no slower while copying a forward's
streamed bytes takes less time than computing it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from charengine.host_memory import ALIGNMENT, copied_to, page_lock, unlock_with, whole_pages

log = logging.getLogger(__name__)

SLOTS = 2
SHRINK_BY = 4  # blocks given up at a time when memory runs out


class HostBlock:
    """One block's weights in one host buffer, page-locked when a GPU will read it; the block's tensors are views of it."""

    def __init__(self, block: nn.Module, pinned: bool) -> None:
        self.places = [
            (owner, store, name)
            for owner in block.modules()
            for store in ("_parameters", "_buffers")
            for name, tensor in getattr(owner, store).items()
            if tensor is not None
        ]
        tensors = [getattr(owner, store)[name] for owner, store, name in self.places]
        self.layout: list[tuple[int, torch.dtype, torch.Size]] = []
        self.nbytes = 0
        for tensor in tensors:
            self.layout.append((self.nbytes, tensor.dtype, tensor.shape))
            self.nbytes += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        self.buffer = whole_pages(max(self.nbytes, ALIGNMENT))
        for tensor, view in zip(tensors, self.views(self.buffer), strict=True):
            view.copy_(tensor)
        if pinned and page_lock(self.buffer):
            unlock_with(self, self.buffer)
        self.bind(self.buffer)

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The block's tensors as they lie in `buffer`."""
        result = []
        for start, dtype, shape in self.layout:
            end = start + shape.numel() * torch.empty(0, dtype=dtype).element_size()
            result.append(buffer[start:end].view(dtype).view(shape))
        return result

    def bind(self, buffer: torch.Tensor) -> None:
        """Make the block compute with the weights in `buffer`."""
        for (owner, store, name), view in zip(self.places, self.views(buffer), strict=True):
            if store == "_parameters":
                owner.get_parameter(name).data = view
            else:
                owner._buffers[name] = view


def streamed_blocks(blocks: int, streamed: int) -> list[int]:
    """Which of `blocks` are streamed: `streamed` of them, evenly spaced, the first and last resident if possible."""
    return [i for i in range(blocks) if (i + 1) * streamed // blocks > i * streamed // blocks]


class BlockStream:
    """Keeps a model on `device` with only `resident` of its blocks there at a time.

    Args:
        module: the whole model, its weights on the host.
        blocks: the equal blocks its forward runs one after another.
        device: where it computes; on the CPU the same copies are made in the foreground, for tests.
        resident: how many blocks stay; all of them if it is at least their number.
        lock_resident: page-lock those too, so that they are back in no time after `release`.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: nn.ModuleList,
        device: torch.device,
        resident: int,
        *,
        lock_resident: bool = True,
    ) -> None:
        self.module, self.blocks, self.device, self.lock_resident = module, blocks, device, lock_resident
        self.hosts: dict[int, HostBlock] = {}
        self._rest: list[tuple[nn.Module, str, str, torch.Tensor]] = []
        self._slots: list[torch.Tensor] = []
        self._occupant: list[int | None] = []
        pinned = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if pinned else None
        self._ready: list[Any] = [torch.cuda.Event() for _ in range(SLOTS)] if pinned else []
        self.placed = False
        self._arrange(resident)
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(self._before(index))
            block.register_forward_hook(self._after(index))

    def _arrange(self, resident: int) -> None:
        """Choose the streamed blocks, and lock their memory."""
        count = len(self.blocks)
        self.streamed = streamed_blocks(count, max(0, count - resident))
        self.module.streams_blocks = bool(self.streamed)  # type: ignore[assignment]  # a graph cannot be recorded over them
        self._order = {index: j for j, index in enumerate(self.streamed)}
        for index in range(count) if self.streamed and self.lock_resident else self.streamed:
            if index not in self.hosts:
                self.hosts[index] = HostBlock(self.blocks[index], self.device.type == "cuda")

    def shrink(self, blocks: int) -> None:
        """Stream so many blocks more, if as many are resident; takes effect at once."""
        self.release()
        if self._copies is not None:
            torch.cuda.empty_cache()
        self._arrange(max(0, len(self.blocks) - len(self.streamed) - blocks))
        self.place()

    def place(self) -> None:
        """Put the resident blocks and everything outside the blocks on the device, and start the first copies."""
        if self.placed:
            return
        self._rest = list(self._outside())
        there = copied_to(self.device, [tensor for *_, tensor in self._rest])
        for (owner, store, name, _), tensor in zip(self._rest, there, strict=True):
            _assign(owner, store, name, tensor)
        largest = max((self.hosts[index].nbytes for index in self.streamed), default=0)
        slots = min(SLOTS, len(self.streamed))
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=self.device) for _ in range(slots)]
        self._occupant = [None] * slots
        for index, host in self.hosts.items():
            if index in self._order:
                host.bind(self._slots[self._order[index] % slots][: host.nbytes])
            else:
                host.bind(host.buffer.to(self.device, non_blocking=True))
        self.placed = True
        for j in range(slots):
            self._copy(j)

    def release(self) -> None:
        """Take everything off the device; `place` puts it back from host memory."""
        if not self.placed:
            return
        if self._copies is not None:
            torch.cuda.synchronize(self.device)
        for host in self.hosts.values():
            host.bind(host.buffer)
        for owner, store, name, tensor in self._rest:
            _assign(owner, store, name, tensor)
        for owner, store, name, tensor in self._outside():  # what was added while it was placed, such as a LoRA
            _assign(owner, store, name, tensor.cpu())
        self._rest, self._slots, self._occupant = [], [], []
        self.placed = False

    def _outside(self) -> Any:
        within = {(id(owner), name) for host in self.hosts.values() for owner, _, name in host.places}
        for owner in self.module.modules():
            for store in ("_parameters", "_buffers"):
                for name, tensor in getattr(owner, store).items():
                    if tensor is not None and (id(owner), name) not in within:
                        yield owner, store, name, tensor.data if store == "_parameters" else tensor

    def _copy(self, j: int) -> None:
        """Copy the j-th streamed block into its slot, behind the work that still reads the slot."""
        slot = j % len(self._slots)
        host = self.hosts[self.streamed[j]]
        target = self._slots[slot][: host.nbytes]
        self._occupant[slot] = j
        if self._copies is None:
            target.copy_(host.buffer[: host.nbytes])
            return
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            target.copy_(host.buffer[: host.nbytes], non_blocking=True)
            self._ready[slot].record(self._copies)

    def _before(self, index: int) -> Any:
        def wait(_module: nn.Module, _args: Any) -> None:
            if not self.placed or index not in self._order:
                return
            j = self._order[index]
            slot = j % len(self._slots)
            if self._occupant[slot] != j:  # the last forward was interrupted
                self._copy(j)
            if self._copies is not None:
                torch.cuda.current_stream(self.device).wait_event(self._ready[slot])

        return wait

    def _after(self, index: int) -> Any:
        def fetch(_module: nn.Module, _args: Any, _output: Any) -> None:
            if not self.placed or index not in self._order:
                return
            j, slots = self._order[index], len(self._slots)
            following = j + slots if j + slots < len(self.streamed) else j % slots  # then the next forward's first
            if following != j:
                self._copy(following)

        return fetch


def shrink_when_out_of_memory(stream: BlockStream) -> None:
    """Let the model's forward be tried again with fewer resident blocks when it runs out of memory; the log says so."""
    forward = stream.module.forward

    def retried(*args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return forward(*args, **kwargs)
            except torch.cuda.OutOfMemoryError:
                if len(stream.streamed) == len(stream.blocks):
                    raise
            stream.shrink(SHRINK_BY)
            log.warning(
                "out of GPU memory: %d of %d blocks stay on the GPU from here on",
                len(stream.blocks) - len(stream.streamed),
                len(stream.blocks),
            )

    stream.module.forward = retried


def _assign(owner: nn.Module, store: str, name: str, tensor: torch.Tensor) -> None:
    if store == "_parameters":
        owner.get_parameter(name).data = tensor
    else:
        owner._buffers[name] = tensor
