"""MLflow's experiment, made before any run: `charengine up` prints a page that shows something, and the gallery links to it at once.

Over MLflow's own HTTP and without mlflow, whose import takes seconds.
"""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from typing import Any

from charengine.machine.home import Home
from charengine.machine.locks import single_flight
from charengine.machine.proxies import keep_loopback_direct
from charengine.tracking.open_tracker import PROJECT
from charengine.tracking.views import KIND, runs_page, view_tags

log = logging.getLogger(__name__)

SECONDS = 10.0  # for one question


def experiment_page(home: Home, uri: str) -> str:
    """The address of the experiment's runs on this home's server, which is made when it is not there; the server's when MLflow says no."""
    keep_loopback_direct()
    try:
        with single_flight(home.locks / "mlflow-experiment.lock", "MLflow's experiment is being made"):
            return f"{uri}{runs_page(_found(uri) or _made(home, uri))}"
    except (OSError, ValueError, KeyError) as error:  # the first run makes it, as it does without `up`
        log.warning("MLflow's experiment could not be made yet (%s)", error)
        return uri


def _found(uri: str) -> str:
    try:
        answer = _ask(f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name={PROJECT}")
    except urllib.error.HTTPError as error:
        error.close()
        return ""
    return str(answer["experiment"]["experiment_id"])


def _made(home: Home, uri: str) -> str:
    tags = [{"key": name, "value": value} for name, value in {**KIND, **view_tags()}.items()]
    # an absolute place, as runs that write to the database themselves need it
    body = {"name": PROJECT, "artifact_location": (home.mlflow / "artifacts").as_uri(), "tags": tags}
    return str(_ask(f"{uri}/api/2.0/mlflow/experiments/create", body)["experiment_id"])


def _ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer
