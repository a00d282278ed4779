"""Prefect, as the gallery asks it: runs, their progress and their states; patient where Prefect is busy."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from charengine.errors import BadInput, StageFailed
from charengine.services.prefect_api import ENDED, OPEN, PrefectApi

T = TypeVar("T")
Json = dict[str, Any]

PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds between attempts: SQLite answers one writer at a time, the others with 503
BUSY = (408, 429, 500, 502, 503, 504)
PAGE = 200  # runs that Prefect gives at once
TOGETHER = 25  # flow runs whose task runs, six or seven each, fit on such a page
MOST_ACTIVE = 2000
AGE = 1.0  # seconds that an answer is good for: several open pages ask together


class PrefectAway(StageFailed):
    """Prefect did not answer, or not as it should."""


class Prefect:
    """A Prefect server.

    Args:
        api: its address, `http://127.0.0.1:4200/api`.
        sleep: for tests.
    """

    def __init__(self, api: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.api = api.rstrip("/")
        self._sleep = sleep
        self._client = PrefectApi(self.api)
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, Any]] = {}

    # --- questions ----------------------------------------------------------------------------------------------------

    def character_runs(self) -> list[Json]:
        """Runs of the flow `character`: all that wait or go on, and the newest of those that ended; newest first.

        Raises:
            PrefectAway: it does not answer.
        """
        active: list[Json] = []
        while len(active) < MOST_ACTIVE:
            part = self._runs(OPEN, "EXPECTED_START_TIME_DESC", len(active))
            active += part
            if len(part) < PAGE:
                break
        return [*active, *self._runs(ENDED, "END_TIME_DESC", 0)]

    def sweep_runs(self) -> list[Json]:
        """The newest runs of the flow `sweep`.

        Raises:
            PrefectAway: it does not answer.
        """
        body = {"flows": {"name": {"any_": ["sweep"]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": PAGE}
        return self._ask("flow_runs/filter", body)

    def run(self, run_id: str) -> Json | None:
        """One flow run; None when Prefect does not know it."""
        try:
            found: Json = self._patiently(lambda client: client.get(f"flow_runs/{run_id}"))
        except BadInput:
            return None
        return found

    def task_runs(self, run_ids: Sequence[str]) -> dict[str, list[Json]]:
        """The stages of each run, in the order started: a page of hundreds of failed characters asks a few times, not hundreds.

        Raises:
            PrefectAway: it does not answer.
        """
        found: dict[str, list[Json]] = {}
        for begin in range(0, len(run_ids), TOGETHER):
            found |= self._task_runs(list(run_ids[begin : begin + TOGETHER]))
        return found

    def _task_runs(self, run_ids: list[str]) -> dict[str, list[Json]]:
        wanted = {"flow_runs": {"id": {"any_": run_ids}}, "sort": "EXPECTED_START_TIME_ASC", "limit": PAGE}
        tasks = self._ask("task_runs/filter", wanted)
        if len(tasks) == PAGE and len(run_ids) > 1:  # some may be left out
            half = len(run_ids) // 2
            return self._task_runs(run_ids[:half]) | self._task_runs(run_ids[half:])
        found: dict[str, list[Json]] = {run_id: [] for run_id in run_ids}
        for task in tasks:
            found[task["flow_run_id"]].append(task)
        return found

    def progress(self, run_ids: list[str]) -> dict[str, Json]:
        """Of each run its newest progress artifact, if it has one."""
        if not run_ids:
            return {}
        wanted = {"flow_run_id": {"any_": run_ids}, "type": {"any_": ["progress"]}}
        found = self._ask("artifacts/filter", {"artifacts": wanted, "sort": "UPDATED_DESC", "limit": PAGE})
        newest: dict[str, Json] = {}
        for artifact in found:
            newest.setdefault(artifact["flow_run_id"], artifact)
        return newest

    def _runs(self, states: tuple[str, ...], sort: str, offset: int) -> list[Json]:
        wanted = {"state": {"type": {"any_": list(states)}}}
        body = {"flows": {"name": {"any_": ["character"]}}, "flow_runs": wanted, "sort": sort, "limit": PAGE}
        return self._ask("flow_runs/filter", {**body, "offset": offset})

    def _ask(self, path: str, body: Json) -> list[Json]:
        """A question that changes nothing; what was answered a moment ago counts."""
        key = f"{path} {json.dumps(body, sort_keys=True)}"
        with self._lock:
            kept = self._kept.get(key)
            if kept and time.monotonic() - kept[0] < AGE:
                return list(kept[1])
        found: list[Json] = self._patiently(lambda client: client.post(path, body))
        with self._lock:
            now = time.monotonic()
            self._kept = {one: value for one, value in self._kept.items() if now - value[0] < AGE} | {key: (now, found)}
        return found

    # --- changes ------------------------------------------------------------------------------------------------------

    def start(self, flow: str, parameters: Json, name: str, *, once: str, queue: str = "") -> str:
        """A run of the deployment of the same name as its flow; its id.

        Args:
            flow: `character` or `sweep`.
            parameters: of the flow.
            name: of the run.
            once: with the same word nothing is started twice, so a form that is sent again and a call that is tried again are safe.
            queue: of the work pool; empty: the deployment's.

        Raises:
            PrefectAway: it does not answer.
            BadInput: it refuses the parameters.
        """
        deployment = self._deployment(flow)
        body: Json = {"parameters": parameters, "name": name, "idempotency_key": once}
        body |= {"work_queue_name": queue} if queue else {}
        made: Json = self._patiently(lambda client: client.post(f"deployments/{deployment}/create_flow_run", body))
        self._forget()
        return str(made["id"])

    def cancel(self, run_id: str, *, force: bool = False) -> None:
        """Ask a run to stop; one that has not begun is cancelled at once.

        Args:
            run_id: of the run.
            force: also one that Prefect takes for ended.

        Raises:
            PrefectAway: it does not answer.
        """
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self._patiently(lambda client: client.post(f"flow_runs/{run_id}/set_state", {"state": state, "force": force}))
        self._forget()

    def _deployment(self, flow: str) -> str:
        try:
            found: Json = self._patiently(lambda client: client.get(f"deployments/name/{flow}/{flow}"))
        except BadInput as error:
            raise PrefectAway(
                f"Prefect at {self.api} has no deployment {flow}/{flow}: start `charengine up` there, or run "
                "`python -m deployments.set_up` with PREFECT_API_URL set to it"
            ) from error
        return str(found["id"])

    def _forget(self) -> None:
        """What was answered before a change is out of date."""
        with self._lock:
            self._kept.clear()

    def _patiently(self, call: Callable[[PrefectApi], T]) -> T:
        """A call, repeated while Prefect is busy; everything we send may be sent twice."""
        why, there = "", False
        for pause in (*PAUSES, None):
            there = False
            try:
                return call(self._client)
            except urllib.error.HTTPError as error:
                with error:
                    there = True
                    why = f"{error.code}: {_detail(error)}"
                if error.code not in BUSY:
                    raise BadInput(f"Prefect refuses this ({why})") from error
            except (OSError, ValueError, http.client.HTTPException) as error:
                why = str(getattr(error, "reason", error) or type(error).__name__)
            if pause is not None:
                self._sleep(pause)
        said = "is too busy to answer" if there else "does not answer"
        todo = "wait a moment, then try again" if there else "`charengine up` starts it"
        raise PrefectAway(f"Prefect at {self.api} {said} ({why}); {todo}")


def _detail(error: urllib.error.HTTPError) -> str:
    """What a refusal says, in one line."""
    try:
        said = json.loads(error.read())
    except (OSError, ValueError, http.client.HTTPException):
        return str(error.reason)
    detail = said.get("detail", said.get("exception_message", error.reason)) if isinstance(said, dict) else said
    return str(detail)[:300]
