"""A home whose `charengine up` or `charengine worker` is ending: what waits stays waiting, and is made the next time.

A worker that goes on asking for runs takes the next character when the one before it has been cancelled, and dies with it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.machine.processes import has_ended, this_process

LARGEST = 1000  # bytes


@contextmanager
def stopping(home: Home) -> Iterator[None]:
    """Meanwhile workers of this home take no runs on this machine; not after this process is gone, however it went."""
    with suppress(OSError):  # as on a full disk: then one more may be taken
        home.stopping.write_text(this_process(), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            home.stopping.unlink(missing_ok=True)


def is_stopping(home: Home) -> bool:
    """Whether workers of this home are to take no runs on this machine."""
    try:
        told = files.read_text(home.stopping, most=LARGEST) if files.is_file(home.stopping) else ""
    except BadInput:
        return False
    # ids of processes come again, in a container at once; of other machines' nobody here knows
    return told.startswith(f"{platform.node()}:") and not has_ended(told)
