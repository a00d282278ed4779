"""The harness: no network but the loopback, a home folder per test, one Prefect server and one random family per session."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from command_line import child_environment
from minutes import longest_first, pytest_addoption, pytest_terminal_summary  # noqa: F401, pytest finds its hooks here
from quick_settings import QUICK

from charengine.machine.environment import CONSOLE_LEVEL, apply_defaults
from charengine.machine.home import Home
from charengine.machine.locks import single_flight
from charengine.store import Store

# Prefect reads its settings when it is imported, so the session's home is named before any test module is
SESSION_HOME = Home(Path(tempfile.mkdtemp(prefix="charengine-tests-")))
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "CHARENGINE_"))]:
    del os.environ[_name]
os.environ["CHARENGINE_HOME"] = str(SESSION_HOME.root)
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
apply_defaults(SESSION_HOME)

# a shell starts its background jobs deaf to Ctrl-C; what is tested here must hear it, and so must its children
signal.signal(signal.SIGINT, signal.default_int_handler)

LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first. GPU tests run where there is one; everything they show is shown on the CPU too."""
    longest_first(items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_unconfigure() -> None:
    shutil.rmtree(SESSION_HOME.root, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host and not str(host).startswith(LOOPBACK):
            raise OSError(f"tests are offline; something tried to reach {address}")
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage() -> None:
    """What is imported stays. The engine and tests collect garbage on purpose, a second each time among a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _environment_is_put_back() -> Iterator[None]:
    """What a server or a command sets for its own process is not there for the tests after it."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all workers of this run read and the first that asks for it makes; nothing writes to it later."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each worker has a folder of its own in it
    folder, made = shared / name, shared / f"{name}.made"
    with single_flight(shared / f"{name}.lock", f"{name} is being made"):
        if not made.exists():
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow folder whose database is made: making one takes ten seconds."""
    from charengine.tracking.database import initialise_database

    place = made_once(tmp_path_factory, "mlflow-template", lambda place: initialise_database(Home(place).create()))
    return Home(place).mlflow


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No models, no home and no hub of whoever runs the tests."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "COMFYUI_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / "charengine"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one of this test's own."""
    return Store(tmp_path / "store")


@pytest.fixture
def home(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home folder of this test's own, ready for runs."""
    place = Home(tmp_path / "home").create()
    shutil.copytree(empty_mlflow, place.mlflow, dirs_exist_ok=True)
    monkeypatch.setenv("CHARENGINE_HOME", str(place.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return place


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded family's classes with two layers and random weights."""
    from charengine.embedded.making.family import build_random_family

    return made_once(tmp_path_factory, "family", lambda place: build_random_family(place, tiny=True))


@pytest.fixture(scope="session")
def tiny_settings(tiny_family: Path) -> tuple[str, ...]:
    """`--set` values for the whole pipeline on the random family, in seconds."""
    return (*(f"models.{part}={tiny_family / folder}" for part, folder in _PARTS.items()), *QUICK)


_PARTS = {"edit": "qwen", "sdxl": "sdxl", "clip": "clip"}


@pytest.fixture(scope="session")
def drawn_sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sheet with three figures: a random edit model draws noise, so runs on it are given one."""
    from sheet_samples import Sheet, paint

    path = tmp_path_factory.mktemp("sheet") / "sheet.png"
    paint(Sheet()).save(path)
    return path


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """One Prefect server for the session; its address, also for child processes."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # at its end a flow of this process would wait for the thread that tells its heartbeats, which sleeps a second at a time
    quiet = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with quiet, prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture
def prefect(prefect_api: str, home: Home) -> Iterator[str]:
    """The session's server, with cached results of this test alone."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home.prefect / "storage"}):
        yield prefect_api


@pytest.fixture
def charengine(home: Home) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own, without a Prefect server."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "charengine.cli", *(str(argument) for argument in arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env=child_environment(home) | environment,
            cwd=home.root.parent,
        )

    return call


def no_server(home: Home) -> NoReturn:
    """One that is started by this process outlives the test, for thirty seconds of processor time."""
    raise AssertionError("this command starts a Prefect server: take the fixture named_server")


@pytest.fixture
def cli(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """The command line in this process, which is afterwards as loud as before."""
    from charengine.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CONSOLE_LEVEL, "CRITICAL")
    engine = logging.getLogger("charengine")
    monkeypatch.setattr(engine, "handlers", engine.handlers)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr("charengine.services.prefect_server.start_prefect", no_server)
    level = engine.level

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr("sys.argv", ["charengine", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(words, int(end.value.code or 0), out, err)

    yield call
    engine.setLevel(level)
