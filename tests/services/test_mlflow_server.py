"""MLflow's server as `charengine up` starts it: MLflow's own, in one process that ends when it is told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from command_line import ROOT, child_environment

from charengine.machine.home import Home
from charengine.machine.processes import any_free_port
from charengine.tracking.experiment import experiment_page
from charengine.tracking.views import KIND, view_tags
from deployments.mlflow_server import CLOSED, serve_here

API = "api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"


def asked(port: int, **headers: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{API}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def shows_the_experiment_before_any_run(home: Home, address: str) -> None:
    """What `charengine up` does when MLflow answers."""
    page = experiment_page(home, address)
    api = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=charengine"
    with urllib.request.urlopen(api, timeout=20) as response:
        made = json.loads(response.read())["experiment"]
    assert page == f"{address}/#/experiments/{made['experiment_id']}/runs?workflowType=machine_learning"
    assert made["artifact_location"] == (home.mlflow / "artifacts").as_uri()
    tags = {tag["key"]: tag["value"] for tag in made["tags"]}
    assert tags.items() >= {**KIND, **view_tags()}.items()  # links of the gallery open charts, not an empty page
    assert experiment_page(home, address) == page  # at the next start too


def has_no_assistant(address: str) -> None:
    """It would run commands as this user."""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/ajax-api/3.0/mlflow/assistant/config", timeout=20)
    with urllib.request.urlopen(address, timeout=20) as response:
        page = response.read()
    assert page.count(CLOSED) == 1 and page.index(CLOSED) < page.index(b"<script defer")


def test_it_is_one_process_that_answers_refuses_foreign_names_shows_the_views_before_any_run_and_ends_when_told(
    tmp_path: Path,
) -> None:
    port = any_free_port()
    command = [sys.executable, "-m", "deployments.mlflow_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    command += ["--artifacts-destination", (tmp_path / "artifacts").as_uri()]
    limits = {"MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=child_environment(Home(tmp_path)) | limits, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert asked(port) == 200
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        assert psutil.Process(server.pid).children(recursive=True) == []
        assert asked(port, Host="evil.example") == 403
        has_no_assistant(f"http://127.0.0.1:{port}")
        shows_the_experiment_before_any_run(Home(tmp_path), f"http://127.0.0.1:{port}")
        server.send_signal(signal.SIGTERM)
        server.wait(20)
    finally:
        server.kill()
        server.wait()


def test_a_command_that_is_not_uvicorn_is_refused() -> None:
    with pytest.raises(RuntimeError, match="gunicorn"):
        serve_here(["gunicorn", "mlflow.server:app"], extra_env={})


def test_without_an_answer_the_address_of_the_server_is_shown(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    silent = f"http://127.0.0.1:{any_free_port()}"
    assert experiment_page(home, silent) == silent
    assert "could not be made yet" in caplog.text
