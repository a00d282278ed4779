"""`python -m charengine.tracking.waiting`: MLflow is told what waits, by a process that makes nothing; `charengine up` starts it.

The question whether something waits is answered from the home alone: nothing here imports mlflow before it is told.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from charengine.machine.home import Home, find_home
from charengine.machine.leases import EXPIRY
from charengine.machine.locks import if_free, reach_other_machines
from charengine.tracking.journal import JOURNAL, left_journals
from charengine.tracking.open_tracker import PROJECT
from charengine.tracking.spool import SPOOL, left_points
from charengine.writing import is_running

PAUSE = 15.0  # seconds between two questions whether somebody is at work in what waits

log = logging.getLogger(__name__)


def something_waits(home: Home) -> bool:
    """Whether MLflow has something to be told that nobody who is at work will tell."""
    if left_points(home.mlflow / SPOOL):
        return True
    return any(_are_free(home, keys) for keys in left_journals(home.mlflow / JOURNAL, is_running))


def is_left(home: Home) -> bool:
    """Whether anything waits, also what somebody may be at work in."""
    journals = left_journals(home.mlflow / JOURNAL, lambda process: False)
    return left_points(home.mlflow / SPOOL) or any(True for _ in journals)


def _are_free(home: Home, keys: set[str]) -> bool:
    """Whether nobody is at work in runs with these keys, nor in the stages that theirs begin with."""
    with ExitStack() as held:
        names = sorted({key.partition("/")[0] for key in keys})
        return all([held.enter_context(if_free(home.locks / f"{name}.lock")) for name in names])


def main() -> int:
    """Tell it; 1 when MLflow cannot be reached."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.captureWarnings(True)
    from charengine.tracking.mlflow import tell_what_waits

    home = find_home()
    until = time.monotonic() + EXPIRY + PAUSE
    try:
        tell_what_waits(home, PROJECT)
        # what is left may be held by one that died on another machine, which takes a minute to be known
        while reach_other_machines() and is_left(home) and time.monotonic() < until:
            time.sleep(PAUSE)
            tell_what_waits(home, PROJECT)
    except Exception as error:  # whatever the server or the network raise: `up` tries again
        log.warning("MLflow cannot be used (%s)", (str(error).splitlines() or [type(error).__name__])[0][:300])
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
