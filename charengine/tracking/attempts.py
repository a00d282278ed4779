"""Calls to a tracking server that may fail without harm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from charengine.machine.full_disks import warn

log = logging.getLogger(__name__)
T = TypeVar("T")

REST_AFTER_FAILURE = 60.0  # seconds without calls after one that failed


class Attempts:
    """Whatever a call raises is logged and passed over: a dead server must not stop a GPU, nor be waited for at each step.

    Args:
        place: MLflow's folder in the home.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._rest_until = 0.0
        self.failures = 0

    @property
    def is_away(self) -> bool:
        """Whether a call has failed a short while ago."""
        return time.monotonic() < self._rest_until

    def attempt(
        self, what: str, call: Callable[[], T], always: bool = False, otherwise: Callable[[], object] = lambda: None
    ) -> T | None:
        """Call MLflow; a failure is logged and gives None, and for a while only `always` calls are tried.

        Args:
            what: for the log.
            call: of MLflow.
            always: it is tried even a short while after another has failed.
            otherwise: called when it was not tried or failed.
        """
        if self.is_away and not always:
            self.failures += 1
            otherwise()
            return None
        try:
            return call()
        except Exception as error:  # whatever MLflow raises
            warn(log, self._place, "MLflow: %s failed: %s", what, (str(error).splitlines() or [""])[0][:300])
            self._rest_until = time.monotonic() + REST_AFTER_FAILURE
            self.failures += 1
            otherwise()
            return None
