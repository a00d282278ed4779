"""A home whose `charengine up` or `charengine worker` is ending: what waits stays waiting, and is made the next time.

A worker that goes on asking for runs takes the next character when the one before it has been cancelled, and dies with it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.writing import is_running

LARGEST = 100  # bytes


def begin_to_stop(home: Home) -> None:
    """From now on workers of this home take no runs, until `stopped`, or until this process is gone."""
    with suppress(OSError):  # as on a full disk: then one more may be taken
        home.stopping.write_text(str(os.getpid()), encoding="utf-8")


def stopped(home: Home) -> None:
    """It has ended."""
    with suppress(OSError):
        home.stopping.unlink(missing_ok=True)


def is_stopping(home: Home) -> bool:
    """Whether workers of this home are to take no runs."""
    try:
        told = files.read_text(home.stopping, most=LARGEST) if files.is_file(home.stopping) else ""
    except BadInput:
        return False
    return told.isdigit() and is_running(int(told))
