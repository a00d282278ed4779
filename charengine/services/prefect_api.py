"""The few calls to Prefect's API that `charengine up` needs, without importing Prefect."""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from typing import Any

log = logging.getLogger(__name__)

ACTIVE = ("RUNNING", "PENDING", "CANCELLING")


def cancel_active_runs(api: str, seconds: float) -> int:
    """Cancel every active flow run and wait, at most so long, until each has ended; how many there were.

    Stopping a worker outright would kill its flows without a word to Python and leave them running on paper.
    """
    runs = _active(api)
    if not runs:
        return 0
    log.info("cancelling %d runs, so that they save their state", len(runs))
    for run in runs:
        if run["state_type"] != "CANCELLING":
            _post(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _active(api):
        time.sleep(1.0)
    return len(runs)


def online_workers(api: str, pool: str) -> int:
    """How many workers of a pool have reported lately."""
    workers = _post(f"{api}/work_pools/{pool}/workers/filter", {})
    return sum(worker["status"] == "ONLINE" for worker in workers)


def _active(api: str) -> list[dict[str, Any]]:
    wanted = {"flow_runs": {"state": {"type": {"any_": list(ACTIVE)}}, "deployment_id": {"is_null_": False}}}
    found: list[dict[str, Any]] = _post(f"{api}/flow_runs/filter", wanted)
    return found


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read() or "null")
