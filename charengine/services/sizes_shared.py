"""How much a store that machines share holds, counted for a few seconds at most."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from charengine.services.prune_shared import SIXTEENTHS, files_below, objects_beginning
from charengine.store import Store

log = logging.getLogger(__name__)

SECONDS = 10.0  # that counting may take, the store's opening among them
AT_ONCE = 8  # threads that list
PARTS = ("state", "results", "locks", "known-runs", *(f"sha256/{sixteenth}" for sixteenth in SIXTEENTHS))


@dataclass
class Counted:
    """What was counted in time.

    Args:
        bytes: by the first folder: sha256 (objects), results, state, locks, known-runs.
        objects: bytes of those objects that were asked for, by digest.
        parts: how many of `PARTS` were counted.
        problem: why not all were; empty when all were.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    objects: dict[str, int] = field(default_factory=dict)
    parts: int = 0
    problem: str = ""


def count(opened: Callable[[], Store], wanted: Set[str] = frozenset(), seconds: float = SECONDS) -> Counted:
    """Count the bytes of a store, as far as that gets.

    Args:
        opened: gives the store; may take as long as it likes.
        wanted: digests of objects whose own sizes are asked for.
        seconds: after which what was counted is given.
    """
    counted, lock, ended, parts = Counted(), threading.Lock(), threading.Event(), iter(PARTS)

    def add(store: Store, part: str) -> None:
        if ended.is_set():
            return
        folder, _, beginning = part.partition("/")
        found = objects_beginning(store, beginning) if beginning else files_below(store, part)
        sizes = {file.path.rpartition("/")[2]: file.bytes for file in found} if beginning else {}
        with lock:
            if ended.is_set():
                return
            counted.bytes[folder] += sum(file.bytes for file in found)
            counted.objects |= {name: sizes[name] for name in sizes.keys() & wanted}
            counted.parts += 1

    def work() -> None:
        try:
            store = opened()
            while not ended.is_set() and (part := next(parts, "")):
                add(store, part)
        except Exception as error:  # whatever its library raises: counting is no reason to fail
            log.debug("the store was not counted", exc_info=True)
            counted.problem = (str(error).splitlines() or [type(error).__name__])[0]

    # a pool's threads are waited for when Python ends, however long a server takes
    threads = [threading.Thread(target=work, name="store sizes", daemon=True) for _ in range(AT_ONCE)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, began + seconds - time.monotonic()))
    with lock:
        ended.set()
    if counted.parts < len(PARTS) and not counted.problem:
        counted.problem = f"it took longer than {time.monotonic() - began:.0f} s"
    return counted
