"""What was written down while MLflow was away is sent before a run begins, and runs whose process has died are closed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from charengine.machine.locks import if_free, reach_other_machines, single_flight_at_home
from charengine.machine.processes import has_ended, this_process
from charengine.tracking.journal import deliver
from charengine.tracking.protocol import Status
from charengine.tracking.spool import Point
from charengine.writing import is_running

log = logging.getLogger(__name__)


class StillAway(Exception):
    """MLflow took some of it, not all."""


def catch_up(connection: Any, open_run: Callable[..., Any], known: Callable[[str], Any], own: str) -> None:
    """Send what was written down and close what was left open; a failure is logged, and what was written down is kept.

    Args:
        connection: to MLflow.
        open_run: opens a run by its key, or makes it.
        known: the run with a key as it is; None when there is none.
        own: key of the run that is about to begin, which this process holds.
    """
    receiver = _Receiver(connection, open_run, known, own)
    try:
        with single_flight_at_home(
            connection.locks / "mlflow-journal.lock", "another run tells MLflow what it had missed"
        ):
            if sent := deliver(connection.journal, receiver, is_running):
                log.info("MLflow was told of %d runs that it had missed", sent)
            receiver.close_left_runs()
    except Exception as error:  # whatever MLflow or a damaged journal raises must not stop this run
        log.warning("MLflow could not be told of earlier runs (%s)", (str(error).splitlines() or [""])[0][:300])


class _Receiver:
    """A connection, as a journal is played to it."""

    def __init__(self, connection: Any, open_run: Callable[..., Any], known: Callable[[str], Any], own: str) -> None:
        self._connection, self._open_run, self._known, self._own = connection, open_run, known, own
        self._failures = connection.failures
        self._sent: set[tuple[str, str, int]] = set()

    @contextmanager
    def alone(self, keys: set[str]) -> Iterator[bool]:
        """Hold the locks that whoever works in these runs holds: a run's own, or that of its stage, which its key begins with."""
        locks = {key.partition("/")[0] for key in keys} - {self._own}
        with ExitStack() as held:
            place = self._connection.locks
            yield all(held.enter_context(if_free(place / f"{name}.lock", make=True)) for name in sorted(locks))

    def begin(self, name: str, key: str, parent: Any, params: Mapping[str, object], tags: Mapping[str, str]) -> Any:
        """The run, with what its spool held sent before: so what it lacks is known."""
        run = self._open_run(name, key, parent, params, tags, delivers=True)
        if self._is_at_work(run):
            return run
        self._drain(run)
        there = self._known(key)
        there.status_before = run.status_before  # empty for one that was made now
        return there

    def known(self, key: str) -> Any:
        return self._known(key)

    def metrics(self, run: Any, values: Mapping[str, float], step: int, when: int) -> None:
        points = [
            Point(key, value, step, when)
            for key, value in values.items()
            if step not in run.delivered_steps(key) and (run.run_id, key, step) not in self._sent
        ]
        if points:
            self._connection.send(run.run_id, points)
            self._sent |= {(run.run_id, point.key, point.step) for point in points}

    def close(self, run: Any, status: Status) -> None:
        """End the run, unless a process is at work in it; one that was finished, or of which all is kept, is finished."""
        if self._is_at_work(run):
            return
        self._drain(run)
        ended = "FINISHED" if run.status_before == "FINISHED" else self._connection.status_of(run.key, status)
        self._connection.client.set_terminated(run.run_id, ended)

    def _drain(self, run: Any) -> None:
        if not self._connection.spool.drain(run.run_id):
            raise StillAway(f"the metrics of run {run.run_id} wait on")

    def _is_at_work(self, run: Any) -> bool:
        """Whether another process has the run open, or one of a machine that nobody here knows about."""
        return (
            run.status_before == "RUNNING"
            and run.process_before not in ("", this_process())
            and not _has_ended(run.process_before)
        )

    def is_away(self) -> bool:
        return bool(self._connection.failures != self._failures)

    def close_left_runs(self) -> None:
        """Send what waits in the spool, and end runs whose process has died."""
        for key in self._connection.unfinished_keys():
            with self.alone({key}) as alone:
                run = self._known(key) if alone else None
                if run is None or (run.status_before == "RUNNING" and not _has_ended(run.process_before)):
                    continue
                self._connection.spool.recover(run.run_id, run.delivered_steps)
                self.close(run, "KILLED")


def _has_ended(process: str) -> bool:
    """Whether a process is not at work in a run whose locks are held here: known of this machine's, and of others' by their leases."""
    return reach_other_machines() or has_ended(process)
