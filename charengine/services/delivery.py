"""What waits for MLflow is delivered while `charengine up` runs, and once more before it ends: after the last run of a night no other follows.

By a process of its own, one at a time: `up` imports no mlflow, and whatever happens there, `up` goes on.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from charengine.machine.addresses import answers
from charengine.machine.home import Home
from charengine.machine.logs import rotate
from charengine.machine.processes import end, spawn
from charengine.tracking.waiting import something_waits

log = logging.getLogger(__name__)

PAUSE = 30.0  # seconds between looks at what waits; doubled while a delivery leaves something
LONGEST_PAUSE = 600.0
LONGEST_DELIVERY = 900.0  # seconds; a run that begins waits for whoever delivers
LAST_SECONDS = 60.0  # at the end of `up`
COMMAND = "charengine.tracking.waiting"


@dataclass
class Delivery:
    """The process that delivers, when there is one.

    Args:
        home: what waits, and the log.
        mlflow: address of the server.
        environment: of the process.
    """

    home: Home
    mlflow: str
    environment: Mapping[str, str]
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)
    _pause: float = field(default=0.0, init=False)
    _look_at: float = field(default=0.0, init=False)

    def look(self) -> None:
        """Begin a delivery when one is due; asked twice a second. A failure is logged, and tried again later."""
        now = time.monotonic()
        if self._is_under_way():
            if now - self._began > LONGEST_DELIVERY:
                self._end()
        elif now >= self._look_at:
            self._look_at = now + PAUSE
            try:
                self._begin_if_due(now)
            except Exception as error:  # a night's work is worth more than what MLflow shows of it
                log.warning("what waits for MLflow is not delivered now: %s", error)

    def finish(self, meanwhile: Callable[[], object]) -> None:
        """Deliver what waits once nobody is at work any more, at most for a minute; a failure is logged.

        Args:
            meanwhile: called twice a second; keeps MLflow's server running.
        """
        deadline = time.monotonic() + LAST_SECONDS
        try:
            self._wait(deadline, meanwhile)  # it passed over what somebody was at work in
            if something_waits(self.home) and not self._is_under_way():
                while not self._mlflow_answers() and time.monotonic() < deadline:
                    meanwhile()
                    time.sleep(0.5)
                self._begin()
                self._wait(deadline, meanwhile)
            if something_waits(self.home):
                log.warning("not all that waits for MLflow was delivered; the next run, `up` or `worker` does it")
        except Exception as error:
            log.warning("what waits for MLflow could not be delivered: %s", error)
        finally:
            self._end()

    def _begin_if_due(self, now: float) -> None:
        if not something_waits(self.home):
            self._pause = 0.0
        elif self._mlflow_answers():
            self._pause = min(LONGEST_PAUSE, max(PAUSE, self._pause * 2))
            self._look_at = now + self._pause
            self._begin()

    def _begin(self) -> None:
        log_file = self.home.logs / "mlflow-delivery.log"
        self._began = time.monotonic()
        with log_file.open("ab") as output:
            rotate(log_file)
            self._popen = spawn([COMMAND], output, self.environment)

    def _wait(self, deadline: float, meanwhile: Callable[[], object]) -> None:
        while self._is_under_way() and time.monotonic() < deadline:
            meanwhile()
            time.sleep(0.2)

    def _is_under_way(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def _mlflow_answers(self) -> bool:
        return answers(f"{self.mlflow}/health")

    def _end(self) -> None:
        """A delivery that is killed is begun again by the next one; nothing is told twice."""
        if self._popen is not None and self._popen.poll() is None:
            end(self._popen)
        self._popen = None
