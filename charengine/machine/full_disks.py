"""A disk that fills while something is made: everything that writes there fails with it, and one line says so."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from charengine.machine.home import Home
from charengine.machine.places import full_disk, nearest_existing
from charengine.writing import FULL

SAID_AGAIN = 600.0  # seconds after which the line is said once more

_said: dict[int, float] = {}  # of which device, and when


def warn(log: logging.Logger, place: Path, message: str, *values: object) -> None:
    """Log that something could not be told or written; where the disk of a place is full, that alone, and once.

    Args:
        log: of whoever failed.
        place: on the disk that was to be written.
        message: for any other failure.
        values: of the message.
    """
    full = full_disk(place)
    if not full:
        log.warning(message, *values)
        return
    device, now = os.stat(nearest_existing(place)).st_dev, time.monotonic()
    if now - _said.get(device, float("-inf")) > SAID_AGAIN:
        _said[device] = now
        log.warning("%s; until then MLflow, Prefect's page and logs that are kept there are told nothing", full)


def is_waited_for(place: Path, ended: str) -> bool:
    """Whether the end of a run waits for a disk that takes nothing. Not for a full one when the run has failed or was stopped: that may be
    for hours, and whoever goes on with the work tells MLflow again what was made after the state it begins at.

    Args:
        place: on the disk.
        ended: the run's status.
    """
    return ended == "FINISHED" or not full_disk(place)


def fullness(error: BaseException, home: Home) -> str:
    """What to tell of an error that comes of a full disk, the home's, Prefect's or another that the error names; empty of any other."""
    for place in (home.root, Path(os.environ.get("PREFECT_HOME", home.prefect))):
        if full := full_disk(place):  # whatever failed at it: Prefect's server says "Insufficient Storage"
            return full
    if isinstance(error, OSError) and error.errno in FULL:
        return f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space"
    return ""
