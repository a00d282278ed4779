"""One process at a time: kernel locks that die with their holder, and stopping between two steps.

Prefect's own file locks outlive a killed holder and block for ever; `flock` does not.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
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


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int, wait: bool) -> None:
        while True:
            try:
                msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    raise
else:
    import fcntl

    def _lock(handle: int, wait: bool) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
