"""What was written down while MLflow was away is sent before a run begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from charengine.machine.processes import is_running
from charengine.tracking.journal import deliver
from charengine.tracking.protocol import Status
from charengine.tracking.spool import Point

log = logging.getLogger(__name__)


def catch_up(journal: Path, connection: Any, open_run: Callable[..., Any]) -> None:
    """Send what was written down; a failure is logged, and the journal kept."""
    try:
        if sent := deliver(journal, _Receiver(connection, open_run), is_running):
            log.info("MLflow was told of %d runs that it had missed", sent)
    except Exception as error:  # whatever MLflow or a damaged journal raises must not stop this run
        log.warning("MLflow could not be told of earlier runs (%s)", (str(error).splitlines() or [""])[0][:300])


class _Receiver:
    """A connection, as a journal is played to it."""

    def __init__(self, connection: Any, open_run: Callable[..., Any]) -> None:
        self._connection, self._open_run = connection, open_run

    def begin(self, name: str, key: str, parent: Any, params: Mapping[str, object], tags: Mapping[str, str]) -> Any:
        return self._open_run(name, key, parent, params, tags)

    def metrics(self, run: Any, values: Mapping[str, float], step: int, when: int) -> None:
        points = [Point(key, value, step, when) for key, value in values.items() if step > run.delivered_step(key)]
        if points:
            self._connection.send(run.run_id, points)

    def close(self, run: Any, status: Status) -> None:
        self._connection.spool.drain(run.run_id)
        self._connection.client.set_terminated(run.run_id, status)

    def is_away(self) -> bool:
        return bool(self._connection.is_away)
