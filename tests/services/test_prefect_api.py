"""Our few calls to Prefect's API: they send what a protected server wants, and what fails is said."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charengine.machine.home import Home
from charengine.services import prefect_api
from charengine.services.children import Child
from charengine.services.prefect_api import PrefectApi, cancel_active_runs, crash_runs_of, give_back_runs
from charengine.services.up import Addresses, Up

PASSWORD = "ann:secret"


class Protected(http.server.BaseHTTPRequestHandler):
    """Answers as Prefect does with a password, and with CSRF protection unless `csrf` is off: two runs are active."""

    csrf = True
    hour = 0  # tokens of another one have run out
    cancelled: list[str] = []
    busy_polls = 0  # how many questions after a cancellation it fails to answer

    def do_GET(self) -> None:
        if self.path.startswith("/api/csrf-token?client="):
            client = self.path.rpartition("=")[2]
            self.answer(*((200, {"token": f"token {self.hour} of {client}"}) if self.csrf else (422, {})))
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        token = f"token {self.hour} of {self.headers['Prefect-Csrf-Client']}"
        if self.csrf and self.headers["Prefect-Csrf-Token"] != token:
            self.answer(403, {"detail": "Missing CSRF token."})
        elif self.path == "/api/flow_runs/first/set_state":
            self.answer(503, {"detail": "database is locked"})
        elif self.path.endswith("/set_state"):
            self.cancelled.append(self.path.split("/")[3])
            self.answer(201, {})
        elif self.cancelled and type(self).busy_polls:
            type(self).busy_polls -= 1
            self.answer(503, {"detail": "database is locked"})
        else:
            gone = ["first", *self.cancelled] if self.cancelled else []  # the second takes the first with it
            left = [name for name in ("first", "second") if name not in gone]
            self.answer(200, [{"id": name, "state_type": "RUNNING"} for name in left])

    def answer(self, status: int, body: Any) -> None:
        wanted = f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"
        status = status if self.headers["Authorization"] == wanted else 401
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def protected(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Protected, "cancelled", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Protected) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
        server.shutdown()


@pytest.mark.parametrize("variable", ["PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"])
@pytest.mark.parametrize("csrf", [True, False])
def test_a_run_that_cannot_be_cancelled_is_named_and_the_others_are_cancelled(
    protected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, csrf: bool
) -> None:
    monkeypatch.setattr(Protected, "csrf", csrf)
    monkeypatch.setenv(variable, PASSWORD)
    with caplog.at_level(logging.WARNING):
        assert cancel_active_runs(protected, 0.0) == 2
    assert Protected.cancelled == ["second"]
    assert "run first could not be cancelled (HTTP Error 503" in caplog.text


def test_a_server_that_is_busy_for_a_moment_is_asked_again_until_the_runs_have_ended(
    protected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Protected, "busy_polls", 1)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", PASSWORD)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert cancel_active_runs(protected, 30.0) == 2
    assert Protected.busy_polls == 0 and time.monotonic() - started < 10
    assert "waiting on" in caplog.text


class Shown:
    """Prefect as it shows its active runs, time after time; and what was set."""

    def __init__(self, *shown: dict[str, str]) -> None:
        self.shown, self.set = list(shown), list[tuple[str, str]]()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path == "flow_runs/filter":
            now = self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]
            return [
                {"id": run, "state_type": state, "start_time": "x" * (state == "RUNNING")} for run, state in now.items()
            ]
        self.set.append((path.split("/")[1], body["state"]["type"]))
        return {}


def test_a_run_that_was_taken_is_cancelled_once_it_has_begun_and_waits_again_when_it_never_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = Shown({"a": "RUNNING", "b": "PENDING", "c": "PENDING"}, {"b": "RUNNING", "c": "PENDING"}, {"c": "PENDING"})
    monkeypatch.setattr(prefect_api, "PrefectApi", lambda url: shown)
    monkeypatch.setattr(prefect_api.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(prefect_api, "BEGINS_SECONDS", 0.2)
    assert cancel_active_runs("", 60.0) == 3
    assert shown.set == [("a", "CANCELLING"), ("b", "CANCELLING")]
    assert give_back_runs("") == 1 and shown.set[2:] == [("c", "SCHEDULED")]
    shown.shown = [{"d": "PENDING"}, {"d": "RUNNING"}, {}]
    assert cancel_active_runs("", 60.0) == 1 and shown.set[3:] == [("d", "CANCELLING")]
    shown.shown = [{"d": "RUNNING"}]
    assert give_back_runs("") == 0


def test_a_wrong_password_is_an_error_and_not_an_empty_list(protected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:wrong")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        PrefectApi(protected).post("flow_runs/filter", {})


def test_up_says_so_when_what_runs_could_not_be_cancelled(
    protected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ended = subprocess.Popen(["true"], start_new_session=True)
    ended.wait()
    port = int(protected.split(":")[2].removesuffix("/api"))
    up = Up(Home(tmp_path).create(), Addresses(port, 1), 0, lambda: True)
    up.children.running.append(Child("worker-0", [], {}, tmp_path / "log", ended, 0.0))
    with caplog.at_level(logging.WARNING):
        up.stop()
    assert "could not be cancelled (HTTP Error 401" in caplog.text


def test_a_machine_marks_those_of_its_own_runs_as_crashed_whose_process_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids = {"gone": "m1:7", "there": "m1:8", "elsewhere": "m2:7", "pending": None, "strange": "7"}
    monkeypatch.setattr(
        prefect_api, "_active", lambda api: [{"id": name, "infrastructure_pid": pid} for name, pid in pids.items()]
    )
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(PrefectApi, "post", lambda self, path, body: told.append((path, body["state"]["type"])))
    assert crash_runs_of("http://127.0.0.1:1/api", "m1", lambda pid: pid == 8) == 1
    assert told == [("flow_runs/gone/set_state", "CRASHED")]


def test_a_token_that_has_run_out_is_taken_anew(protected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's are good for an hour; whoever looks on all night would be refused from then on."""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", PASSWORD)
    api = PrefectApi(protected)
    assert len(api.post("flow_runs/filter", {})) == 2
    monkeypatch.setattr(Protected, "hour", 1)
    assert len(api.post("flow_runs/filter", {})) == 2
    monkeypatch.setattr(Protected, "csrf", None)  # it is refused whatever it brings
    monkeypatch.setattr(Protected, "do_POST", lambda self: self.answer(403, {}))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        api.post("flow_runs/filter", {})
