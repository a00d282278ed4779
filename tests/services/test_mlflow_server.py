"""MLflow's server as `charengine up` starts it: MLflow's own, in one process that ends when it is told to."""

from __future__ import annotations

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
from deployments.mlflow_server import serve_here

API = "api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"


def asked(port: int, **headers: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{API}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_it_is_one_process_that_answers_refuses_foreign_names_and_ends_when_told(tmp_path: Path) -> None:
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
        server.send_signal(signal.SIGTERM)
        server.wait(20)
    finally:
        server.kill()
        server.wait()


def test_a_command_that_is_not_uvicorn_is_refused() -> None:
    with pytest.raises(RuntimeError, match="gunicorn"):
        serve_here(["gunicorn", "mlflow.server:app"], extra_env={})
