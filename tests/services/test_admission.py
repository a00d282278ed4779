"""A machine that a server does not let in is told so at once, with what to set."""

from __future__ import annotations

import base64
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from charengine.services.admission import refusal_of_mlflow, refusal_of_prefect

PASSWORD = base64.b64encode(b"studio:secret").decode()


class Guarded(BaseHTTPRequestHandler):
    """Answers as Prefect's and MLflow's servers with a password do; MLflow's looks at the name it is called by first."""

    def do_GET(self) -> None:
        status, said = 200, b"{}"
        if "mlflow" in self.path and "elsewhere" in str(self.headers["Host"]):
            status, said = 403, b"Invalid Host header - possible DNS rebinding attack detected"
        elif self.headers["Authorization"] != f"Basic {PASSWORD}":
            status, said = 401, b"You are not authenticated."
        self.send_response(status)
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    names = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME")
    for name in (*names, "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        urllib.request, "_opener", None
    )  # which remembers the proxy of the first test that asked anything
    monkeypatch.setenv("HOME", str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_prefect_s_password_is_asked_for_and_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(401): set PREFECT_API_AUTH_STRING" in refusal_of_prefect(f"{address}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "studio:secret")
    assert refusal_of_prefect(f"{address}/api") == ""


def test_mlflow_s_password_is_asked_for_and_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refusal_of_mlflow(address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "studio")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert refusal_of_mlflow(address) == ""


def test_a_name_that_mlflow_s_server_was_not_told_of_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    port, real = address.rpartition(":")[2], socket.getaddrinfo

    def found(host: Any, *more: Any, **named: Any) -> Any:
        return real("127.0.0.1" if host == "elsewhere.example" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    refusal = refusal_of_mlflow(f"http://elsewhere.example:{port}")
    assert f"(403): start its server with --allowed-hosts elsewhere.example:{port}" in refusal


def test_credentials_in_mlflow_s_own_file_are_not_missed(address: str, tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\n")
    assert refusal_of_mlflow(address) == ""


def test_a_server_that_is_away_refuses_nobody() -> None:
    assert refusal_of_prefect("http://127.0.0.1:9/api") == refusal_of_mlflow("http://127.0.0.1:9") == ""
