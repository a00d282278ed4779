"""Tasks whose end Prefect did not hear of: their states reach it as events, which are lost with a process that is killed while it holds them.

A run's own state is no event, and is right: what it left open is ended as the run itself was, once no event can be on its way.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from charengine.services.prefect_api import ENDED, OPEN, PrefectApi

log = logging.getLogger(__name__)

FLOWS = ["character", "batch", "sweep"]  # ours: others may use the server too
SECONDS = 90.0  # that a task is seen open in a run that has ended; on a busy server events take half a minute


@dataclass
class Unheard:
    """Ends such tasks.

    Args:
        api: of Prefect's server.
    """

    api: PrefectApi
    _since: dict[str, float] = field(default_factory=dict, init=False)  # by task, when it was first seen so
    _thread: threading.Thread | None = field(default=None, init=False)

    def look(self) -> None:
        """Begin to look, unless that is under way: whoever asks does not wait for the server. A failure is logged."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._try, name="unheard", daemon=True)
            self._thread.start()

    def _try(self) -> None:
        try:
            if count := self.end(time.monotonic()):
                log.warning("Prefect did not hear how %d tasks of runs that have ended went; they are ended too", count)
        except Exception as error:  # of whatever kind: the next look follows
            self._since.clear()  # the server was away: what it held back comes first
            log.warning("tasks that Prefect did not hear the end of wait: %s", error)

    def end(self, now: float) -> int:
        """End what has been open for long enough; how many.

        A late event changes nothing, for it tells of an earlier moment: Prefect keeps the latest state.

        Args:
            now: seconds of a clock that is not set.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        wanted: dict[str, Any] = {"flow_runs": _in(ENDED), "task_runs": _in(OPEN), "flows": {"name": {"any_": FLOWS}}}
        left = self.api.post("task_runs/filter", wanted)
        self._since = {task["id"]: self._since.get(task["id"], now) for task in left}
        due = [task for task in left if now - self._since[task["id"]] >= SECONDS]
        if not due:
            return 0
        of_runs = {"id": {"any_": sorted({task["flow_run_id"] for task in due})}, **_in(ENDED)}
        runs = {run["id"]: run for run in self.api.post("flow_runs/filter", {"flow_runs": of_runs})}
        # a cast's task stands for the run that it submitted, which may go on without the cast
        children = {"parent_task_run_id": {"any_": [task["id"] for task in due]}, **_in(OPEN)}
        alive = {run["parent_task_run_id"] for run in self.api.post("flow_runs/filter", {"flow_runs": children})}
        ended = [task for task in due if task["flow_run_id"] in runs and task["id"] not in alive]
        for task in ended:
            state = _ended_as(runs[task["flow_run_id"]], task)
            self.api.post(f"task_runs/{task['id']}/set_state", {"state": state, "force": True})
        return len(ended)


def _in(types: tuple[str, ...]) -> dict[str, Any]:
    return {"state": {"type": {"any_": types}}}


def _ended_as(run: dict[str, Any], task: dict[str, Any]) -> dict[str, str]:
    """The state of a task of a run: completed only by the try that completed the run."""
    kind = run["state_type"]
    earlier = run["run_count"] > 1 and task["flow_run_run_count"] < run["run_count"]
    if earlier or kind == "FAILED":  # whether by this task is not known
        kind = "CRASHED"
    return {"type": kind, "message": f"Prefect did not hear how it ended; its run ended as {run['state_type']}"}
