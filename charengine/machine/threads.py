"""Who works in this process, one caller at a time, and how many threads torch works with on a CPU: decided by a rule, since it decides the last bits of every sum.

torch splits a sum over its threads and adds the parts, so another number of threads gives other bytes, and no setting of torch
makes them equal. A trial of which number is fastest gave two homes of one machine adapters that differed; now the same number is
taken wherever there are as many cores (docs/decisions/0050-threads-and-bytes.md).
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOFT_PAUSE = 1  # omp_pause_soft: what the program set is kept
SMALL_FAMILY = 2  # threads for the embedded family, whose sums are too small for more
USER_CHOICE = "OMP_NUM_THREADS"


def usual_threads(family: str) -> int:
    """Threads to start work with: the user's choice, else two for the embedded family and for another all that torch would take.

    Args:
        family: of the models (`models.family`).
    """
    import torch

    own = torch.get_num_threads()
    return own if family != "embedded" or USER_CHOICE in os.environ else min(own, SMALL_FAMILY)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def working_threads(count: int) -> Iterator[None]:
    """Let torch work with so many threads meanwhile, in this thread and in those that it starts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_turn = threading.RLock()


@contextmanager
def one_caller() -> Iterator[None]:
    """Let the caller's thread alone work meanwhile; others wait, a caller that comes again does not.

    transformers loads models, torch counts its threads and Prefect's server starts by what is the same for the whole process: two
    threads that did so at once left it unable to load any model.
    """
    with _turn:
        yield


def _new_turn() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):  # who held it is no thread of the child
    os.register_at_fork(after_in_child=_new_turn)


def release_team() -> None:
    """End the threads that GNU's OpenMP keeps for the calling thread.

    Work that goes on in another thread gets a team of its own. Once there are more such threads than cores they sleep at
    every barrier instead of spinning first, and a training step takes twice as long. Other OpenMPs are left alone.
    """
    if sys.platform != "linux":
        return
    pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
    if pause is not None:
        pause(SOFT_PAUSE)


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
