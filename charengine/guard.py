"""One process at a time: kernel locks that die with their holder, and stopping between two steps.

Prefect's own file locks outlive a killed holder and block for ever; `flock` does not.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def single_flight(path: Path, waiting_for: str) -> Iterator[bool]:
    """Hold the lock file; says whether another process had to be waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        waited = not _try_lock(handle)
        if waited:
            log.info("waiting for another process: %s", waiting_for)
            _wait_lock(handle)
        yield waited
    finally:
        os.close(handle)


@contextmanager
def gpu_slot(locks: Path, device: Any) -> Iterator[None]:
    """Hold the GPU that a torch device names; the CPU needs no slot."""
    if getattr(device, "type", "cpu") != "cuda":
        yield
        return
    import torch

    name = f"gpu-{torch.cuda.get_device_properties(device).uuid}.lock"
    with single_flight(locks / name, f"GPU {name[4:-5]} is busy with another run"):
        yield


class StopRequest:
    """While entered, SIGTERM and SIGINT only set a flag, so that training can save its state between two steps.

    On the way out the signal is delivered to whoever would have had it: Prefect's cancellation, or KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody asked to stop."""
        return self._signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._signal is not None:
            self._deliver(self._signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        log.warning("stopping at the next step (signal %s)", number)
        self._signal = number

    def _deliver(self, number: int) -> None:
        handler = self._before.get(number)
        if callable(handler):
            handler(number, None)
        else:
            signal.raise_signal(number)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Until left, SIGTERM and SIGINT interrupt the main thread once and are remembered; both then count as handled."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _try_lock(handle: int) -> bool:
    try:
        _lock(handle, wait=False)
    except OSError:
        return False
    return True


def _wait_lock(handle: int) -> None:
    while True:
        with suppress(InterruptedError):
            _lock(handle, wait=True)
            return


if os.name == "nt":
    import msvcrt

    def _lock(handle: int, wait: bool) -> None:
        while True:
            try:
                msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
                return
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    raise
else:
    import fcntl

    def _lock(handle: int, wait: bool) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
