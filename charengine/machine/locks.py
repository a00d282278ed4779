"""One process at a time: kernel locks that die with their holder, or leases where several machines share the folder.

Prefect's own file locks outlive a killed holder and block for ever; `flock` does not. `CHARENGINE_LOCKS=lease` takes leases
instead (charengine/machine/leases.py), for shared folders whose `flock` holds on one machine only.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from charengine.errors import BadInput
from charengine.machine.leases import InFolder, InStore, Place, lease, lease_if_free
from charengine.machine.shared import shared_store

LOCKS, KINDS = "CHARENGINE_LOCKS", ("flock", "lease")

T = TypeVar("T")
log = logging.getLogger(__name__)


@contextmanager
def single_flight(path: Path, waiting_for: str) -> Iterator[bool]:
    """Hold the lock of this name, on this machine or on all that share it; says whether another process had to be waited for.

    Raises:
        BadInput: CHARENGINE_LOCKS names no kind of lock.
    """
    with _held(_place_of_lease(path), path, waiting_for) as waited:
        yield waited


@contextmanager
def single_flight_at_home(path: Path, waiting_for: str) -> Iterator[bool]:
    """The same for what belongs to the home, and so to one machine where only the store is shared.

    Raises:
        BadInput: CHARENGINE_LOCKS names no kind of lock.
    """
    with _held(_place_at_home(path), path, waiting_for) as waited:
        yield waited


def _held(place: Place | None, path: Path, waiting_for: str) -> AbstractContextManager[bool]:
    """The lease of a lock, or the kernel's lock where there is no place for one."""
    return lease(place, waiting_for) if place else flocked(path, waiting_for)


def reach_other_machines() -> bool:
    """Whether who holds a lock knows that nobody on any machine does."""
    return _leases() or shared_store() is not None


def _place_of_lease(path: Path) -> Place | None:
    """Where the lease of a lock lies; None where locks are the kernel's."""
    store = shared_store()
    return InStore(store, path.name) if store else _place_at_home(path)


def _place_at_home(path: Path) -> Place | None:
    """The same among who shares the home."""
    return InFolder(path) if _leases() else None


def _leases() -> bool:
    kind = os.environ.get(LOCKS) or "flock"
    if kind not in KINDS:
        raise BadInput(f"{LOCKS}={kind!r} is not allowed: flock (one machine) or lease (machines that share the home)")
    return kind == "lease"


@contextmanager
def flocked(path: Path, waiting_for: str) -> Iterator[bool]:
    """Hold the lock file on this machine; says whether another process had to be waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        handle = _opened(path, os.O_RDWR | os.O_CREAT)
        try:
            if not _try_lock(handle):
                if not waited:
                    log.info("waiting for another process: %s", waiting_for)
                waited = True
                _wait_lock(handle)
            if _is_at(path, handle):
                yield waited
                return
        finally:
            os.close(handle)


@contextmanager
def if_free(path: Path, make: bool = False) -> Iterator[bool]:
    """Hold the lock of this name if nobody does; says whether it is free.

    Args:
        path: of the lock.
        make: one that was never held is made and held; else nothing is made, and so nobody is kept from it.
    """
    if place := _place_of_lease(path):
        with lease_if_free(place, make) as free:
            yield free
        return
    with flocked_if_free(path, make) as free:
        yield free


@contextmanager
def flocked_if_free(path: Path, make: bool = False) -> Iterator[bool]:
    """The same on this machine alone, whatever kind of locks was asked for: the kernel gives it back when its holder dies."""
    if make:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = _opened(path, os.O_RDWR | os.O_CREAT if make else os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _try_lock(handle) and (not make or _is_at(path, handle))
    finally:
        os.close(handle)


def _opened(path: Path, flags: int) -> int:
    """A lock file, opened.

    Raises:
        BadInput: a folder is in its place.
        FileNotFoundError: there is none, and none is to be made.
    """
    try:
        return os.open(path, flags, 0o644)
    except IsADirectoryError as error:
        raise BadInput(f"{path} is a folder where a lock's file belongs: move it away") from error


def _is_at(path: Path, handle: int) -> bool:
    """Whether a lock file is still the one at its path: `prune` removes old ones, and a lock on a removed file locks nothing."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def gpu_slot(locks: Path, device: Any) -> Iterator[None]:
    """Hold the GPU that a torch device names; the CPU needs no slot."""
    kind = getattr(device, "type", "cpu")
    if kind == "cpu":
        yield
        return
    name = _gpu_name(device) if kind == "cuda" else kind  # a Mac has one GPU
    with flocked(locks / f"gpu-{name}.lock", f"GPU {name} is busy with another run"):
        yield


def _gpu_name(device: Any) -> str:
    """What tells one GPU from another in every process; ROCm before 6.3 has no uuid, so that its number must do."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return str(uuid or (torch.cuda.current_device() if device.index is None else device.index))


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
