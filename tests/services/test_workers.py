"""`charengine worker`: one machine of several asks for what it needs, waits for the servers, and leaves nothing behind."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charengine.cli import serving
from charengine.errors import BadInput, Interrupted
from charengine.machine.home import Home
from charengine.services import workers as module
from charengine.services.children import Children
from charengine.services.workers import Workers, start_workers, workers

WAITS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As in a terminal, whatever pytest was started from."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def addresses(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers that nobody has started, and a store."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:2")
    monkeypatch.setenv("CHARENGINE_STORE", "memory://studio/store")
    yield


@pytest.fixture
def servers(addresses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They answer; nothing is started."""
    monkeypatch.setattr(module, "answers", lambda url: True)
    monkeypatch.setattr(module, "crash_runs_of", lambda *_: 0)
    monkeypatch.setattr(module, "start_workers", lambda *_: None)


def test_what_is_not_named_is_asked_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "CHARENGINE_STORE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match="PREFECT_API_URL and MLFLOW_TRACKING_URI"):
        serving.worker()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:2")
    with pytest.raises(BadInput, match="CHARENGINE_STORE"):
        serving.worker()


def test_addresses_are_checked_once(servers: None, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[None] = []
    monkeypatch.setattr(module, "reach_other_machines", lambda: not checked.append(None))
    monkeypatch.setattr(module, "refusal_of_prefect", lambda api: f"{api} refuses")
    with pytest.raises(BadInput, match="refuses"):
        serving.worker()
    assert len(checked) == 1


def test_ctrl_c_ends_the_wait_for_a_store_that_is_away(
    addresses: None, ctrl_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("it waits on")

    monkeypatch.setattr(module, "reach_other_machines", away)
    with pytest.raises(Interrupted, match="before the store answered"):
        serving.worker()


def test_servers_that_do_not_answer_yet_are_waited_for(
    addresses: None, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.01)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted), workers(home, lambda: next(asked)):
        pass
    assert caplog.text.count("waiting for PREFECT_API_URL=http://127.0.0.1:1/api and MLFLOW_TRACKING_URI") == 1
    assert not (home.temporary / platform.node()).exists()


def test_a_store_whose_server_writes_over_what_is_there_is_refused(
    addresses: None, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from charengine.machine.shared import shared_store

    store = shared_store()
    assert store
    plain = store.fs._fs.pipe_file
    monkeypatch.setattr(store.fs._fs, "pipe_file", lambda path, data, mode="": plain(path, data))
    with pytest.raises(BadInput, match="If-None-Match"), workers(home, lambda: True):
        pass
    assert not [path for path in store.fs.find(store.root) if "try-" in path]


def test_a_machine_that_prefect_refuses_ends_and_one_that_mlflow_refuses_goes_on_and_says_so(
    servers: None, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "refusal_of_mlflow", lambda uri: f"{uri} refuses")
    with workers(home, lambda: True):
        assert "http://127.0.0.1:2 refuses; until then what it is told waits" in caplog.text
    monkeypatch.setattr(module, "refusal_of_prefect", lambda api: f"{api} refuses")
    with pytest.raises(BadInput, match="http://127.0.0.1:1/api refuses"), workers(home, lambda: True):
        pass


def test_each_gpu_that_may_be_used_gets_a_worker_of_its_own_and_casts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    started: dict[str, tuple[str, str]] = {}

    def start(self: Children, name: str, command: list[object], environment: Any) -> None:
        started[name] = (str(command[command.index("--name") + 1]), environment["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(Children, "start", start)
    start_workers(Children(tmp_path), 2, {}, "m1-")
    assert started == {
        "worker-0": ("m1-characters-0", "3"),
        "worker-1": ("m1-characters-1", "5"),
        "worker-orchestrate": ("m1-orchestrate", ""),
    }


def test_machines_that_share_a_home_have_logs_and_temporary_files_of_their_own(addresses: None, home: Home) -> None:
    made = Workers(home, lambda: True)
    assert {made.logs, made.temporary} == {home.logs / platform.node(), home.temporary / platform.node()}


def test_states_that_a_killed_training_left_here_go_once_they_are_in_the_store(servers: None, home: Home) -> None:
    """Another machine went on from the store and ended it, and knows nothing of this one's copy."""
    left = home.state / "train-0" / "state.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"step 2")
    with workers(home, lambda: True):
        assert not left.exists() and home.state.is_dir()


def test_states_in_a_home_that_machines_share_stay(
    addresses: None, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHARENGINE_STORE")
    monkeypatch.setenv("CHARENGINE_LOCKS", "lease")
    left = home.state / "train-0" / "state.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"step 2")
    Workers(home, lambda: True)._forget_copies()
    assert left.read_bytes() == b"step 2"
