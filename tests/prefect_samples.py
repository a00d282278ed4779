"""A Prefect server as the product starts it, with our deployments, for the tests that talk to one."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, child_environment

from charengine.machine.addresses import answers
from charengine.machine.home import Home
from charengine.machine.processes import end, spawn
from charengine.services.prefect_api import PrefectApi

START_SECONDS = 120.0


@dataclass
class Server:
    """A running server."""

    home: Home
    url: str

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return PrefectApi(self.url).post(path, body)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=20) as response:
            return json.loads(response.read())

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"deployments/name/{name}/{name}"))

    def patch(self, path: str, body: dict[str, Any]) -> None:
        """As the page changes something; through Prefect's own client, which sends the token."""
        self._change("PATCH", path, body)

    def delete(self, path: str) -> None:
        self._change("DELETE", path, None)

    def _change(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: self.url}), get_client(sync_client=True) as client:
            client._client.request(method, f"/{path}", json=body).raise_for_status()

    def set_up(self) -> None:
        """What `charengine up` does once the server answers."""
        done = subprocess.run(
            [sys.executable, "-m", "deployments.set_up"],
            env=child_environment(self.home, self.url),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].startswith("ready: the pools characters and orchestrate")
        assert "prefect worker" not in done.stdout


@contextmanager
def prefect_server(folder: Path, **environment: str) -> Iterator[Server]:
    """A server with a database of its own."""
    home = Home(folder / "home").create()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home.logs / "prefect-server.log"
    with log.open("wb") as output:
        process = spawn(["deployments.server", "--port", port], output, child_environment(home) | environment)
    try:
        url = f"http://127.0.0.1:{port}/api"
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{url}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Server(home, url)
    finally:
        end(process)


@contextmanager
def at_home(folder: Path, empty_mlflow: Path) -> Iterator[Home]:
    """A home in this folder, in which this process works."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    home = Home(folder / "home").create()
    shutil.copytree(empty_mlflow, home.mlflow, dirs_exist_ok=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home.prefect / "results"}),
    ):
        patch.setenv("CHARENGINE_HOME", str(home.root))
        yield home
