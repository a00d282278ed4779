"""The few calls to Prefect's API that `charengine up` and the gallery need, without importing Prefect."""

from __future__ import annotations

import base64
import json
import logging
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from charengine.machine.environment import CLIENT_AUTH, SERVER_AUTH

log = logging.getLogger(__name__)
BEGINS_SECONDS = 15.0  # within which a run that a worker has taken begins

ACTIVE = ("RUNNING", "PENDING", "CANCELLING")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
OPEN = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED")  # every other type of state
SECONDS = 20.0  # for one call; a machine that trains is slow to answer
REFUSED = 403  # also what a CSRF token gets that has run out, an hour after it was given
NO_CSRF = (404, 422)  # what a server without CSRF protection answers when asked for a token


class PrefectApi:
    """A Prefect server's API, with the password the environment names and the CSRF token it wants.

    Args:
        url: of the API, `http://127.0.0.1:4200/api`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._auth = _auth_header()
        self._csrf: dict[str, str] | None = None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a POST.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        try:
            return self._post(path, body)
        except urllib.error.HTTPError as error:
            if error.code != REFUSED or not self._csrf:
                raise
            error.close()
        self._csrf = None
        return self._post(path, body)

    def get(self, path: str) -> Any:
        """The answer to a GET.

        Raises:
            OSError: the server does not answer, or refuses.
        """
        return self._call(urllib.request.Request(f"{self._url}/{path}"))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", **self._csrf_headers()}
        return self._call(urllib.request.Request(f"{self._url}/{path}", json.dumps(body).encode(), headers))

    def _csrf_headers(self) -> dict[str, str]:
        if self._csrf is None:
            client = str(uuid.uuid4())
            try:
                token = self._call(urllib.request.Request(f"{self._url}/csrf-token?client={client}"))["token"]
            except urllib.error.HTTPError as error:
                if error.code not in NO_CSRF:
                    raise
                self._csrf = {}
            else:
                self._csrf = {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}
        return self._csrf

    def _call(self, request: urllib.request.Request) -> Any:
        for name, value in self._auth.items():
            request.add_header(name, value)
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return json.loads(response.read() or "null")


def cancel_active_runs(url: str, seconds: float) -> int:
    """Cancel every active flow run and wait, at most so long, until each has ended; how many there were.

    Stopping a worker outright would kill its flows without a word to Python and leave them running on paper.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    api = PrefectApi(url)
    runs = _active(api)
    if not runs:
        return 0
    log.info("cancelling %d runs, so that they save their state", len(runs))
    began, asked = time.monotonic(), set[str]()
    active: list[dict[str, Any]] | None = runs  # None: Prefect does not say
    while active is None or _waited_for(active, time.monotonic() - began):
        for run in active or []:
            if run["state_type"] == "RUNNING" and run["id"] not in asked:
                asked.add(run["id"])
                _cancel(api, run)
        if time.monotonic() > began + seconds:
            break
        time.sleep(1.0)
        active = _still_active(api)
    return len(runs)


def _waited_for(active: list[dict[str, Any]], waited: float) -> bool:
    """Whether there is an end worth waiting for: what a worker has taken begins in moments, or not at all."""
    return any(run["state_type"] != "PENDING" or waited < BEGINS_SECONDS for run in active)


def give_back_runs(url: str) -> int:
    """Have what a worker took and never began wait again: called when no worker is there any more. How many there were.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    api = PrefectApi(url)
    runs = [run for run in _active(api) if run["state_type"] == "PENDING" and not run.get("start_time")]
    waits = {"type": "SCHEDULED", "name": "Scheduled", "message": "charengine up ended before it began"}
    for run in runs:
        api.post(f"flow_runs/{run['id']}/set_state", {"state": waits, "force": True})
    return len(runs)


def crash_left_runs(url: str) -> int:
    """Mark as crashed what Prefect believes to run: called while no worker is there yet, so nothing can be. How many there were.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    api = PrefectApi(url)
    return _crash(api, _active(api), "its process ended when charengine up did")


def crash_runs_of(url: str, host: str, is_there: Callable[[int], bool]) -> int:
    """The same for the runs of one machine whose process is gone; those of other machines go on. How many there were.

    Args:
        url: of the API.
        host: name of the machine, as its runs' processes are called in Prefect: `HOST:PID`.
        is_there: whether a process of this machine is that of a flow.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    api = PrefectApi(url)
    gone = []
    for run in _active(api):
        named, _, pid = str(run.get("infrastructure_pid") or "").rpartition(":")
        if named == host and pid.isdigit() and not is_there(int(pid)):
            gone.append(run)
    return _crash(api, gone, f"its process on {host} is gone")


def _crash(api: PrefectApi, runs: list[dict[str, Any]], why: str) -> int:
    state = {"type": "CRASHED", "name": "Crashed", "message": why}
    for run in runs:
        api.post(f"flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    return len(runs)


def _active(api: PrefectApi) -> list[dict[str, Any]]:
    wanted = {"flow_runs": {"state": {"type": {"any_": list(ACTIVE)}}, "deployment_id": {"is_null_": False}}}
    found: list[dict[str, Any]] = api.post("flow_runs/filter", wanted)
    return found


def _still_active(api: PrefectApi) -> list[dict[str, Any]] | None:
    """None where Prefect does not say."""
    try:
        return _active(api)
    except OSError as error:  # the runs go on saving meanwhile
        log.warning("Prefect does not say which runs have ended (%s); waiting on", error)
        return None


def _cancel(api: PrefectApi, run: dict[str, Any]) -> None:
    try:
        api.post(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    except OSError as error:  # the others are cancelled all the same
        log.warning("run %s could not be cancelled (%s); it loses what it did since it last saved", run["id"], error)


def _auth_header() -> dict[str, str]:
    given = next((value for name in (CLIENT_AUTH, SERVER_AUTH) if (value := os.environ.get(name))), "")
    return {"Authorization": f"Basic {base64.b64encode(given.encode()).decode()}"} if given else {}
