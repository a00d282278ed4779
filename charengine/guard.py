"""One process at a time: kernel locks that die with their holder, and stopping between two steps.

Prefect's own file locks outlive a killed holder and block for ever; `flock` does not.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from charengine.threads import release_team

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


def run_stoppable(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run `work(should_stop)` so that an interrupt of the calling thread lets it finish its step and save its state.

    The work runs in a thread of its own while the calling one waits. Ctrl-C and Prefect's cancellation are raised in the
    waiting thread, here: they set the flag, and go on once the work has stopped. (A signal handler of ours would do
    without the thread, but Prefect takes a run for crashed, not cancelled, when it does not find its own in place.)
    """
    stop = threading.Event()
    outcome: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(work, stop.is_set))
        except BaseException as error:
            outcome.set_exception(error)

    release_team()
    thread = threading.Thread(target=run, name="stage")
    try:
        thread.start()
        return outcome.result()
    except Exception:
        raise
    except BaseException:
        log.warning("stopping at the next step")
        stop.set()
        time.sleep(0.1)  # an interrupt of start() itself: the thread may be about to begin
        if thread.ident is not None:
            wait([outcome])
        raise


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
