"""Servers that stay look through what they answer with, seldom, and never through what they are made of."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from charengine.cli.main import main
from charengine.machine.collection import USUAL, YOUNG
from charengine.machine.home import Home
from charengine.models.loading import Loaded
from charengine.services.gallery.server import serve as serve_gallery
from deployments import server, sqlite_connections
from deployments.mlflow_server import UVICORN, serve_here

MADE_OF = 50_000  # objects that no server has fewer of


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """How many young objects are looked through, and how many old ones no more, when uvicorn begins to serve."""
    seen: list[tuple[int, int]] = []
    usual = gc.get_threshold()

    def begun(*_: object, **__: object) -> None:
        seen.append((gc.get_threshold()[0], gc.get_freeze_count()))

    monkeypatch.setattr("uvicorn.run", begun)
    monkeypatch.setattr("uvicorn.main.main", begun)
    gc.unfreeze()
    yield seen
    gc.unfreeze()
    gc.set_threshold(*usual)


def of_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start it."""
    monkeypatch.setattr("prefect.server.api.server.create_app", lambda **_: FastAPI())
    try:
        server.serve(4200)
    finally:
        sa.event.remove(sa.engine.Engine, "do_connect", sqlite_connections._unlocking)


def of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start it, with nothing for its application, which warns of a part of its own."""
    monkeypatch.setitem(sys.modules, "mlflow.server.fastapi_app", ModuleType("fastapi_app"))
    serve_here([*UVICORN, "mlflow.server.fastapi_app:app"], extra_env={})


def of_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start it."""
    serve_gallery(4300)


@pytest.mark.parametrize("start", [of_prefect, of_mlflow, of_the_gallery])
def test_a_server_begins_with_its_own_objects_put_aside(
    start: Callable[[pytest.MonkeyPatch], None],
    served: list[tuple[int, int]],
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start(monkeypatch)
    ((young, aside),) = served
    assert young == YOUNG > 700 and aside > MADE_OF


def test_a_command_imports_without_looking_and_looks_as_usual_once_models_are_loaded(
    served: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setitem(main.__globals__, "take_own_packages", lambda: seen.append(gc.get_threshold()[0]))
    monkeypatch.setattr("sys.argv", ["charengine", "--version"])
    with pytest.raises(SystemExit):
        main()
    Loaded().get("model", lambda: seen.append(gc.get_threshold()[0]))
    assert seen == [YOUNG, USUAL[0]] and not served


@pytest.mark.parametrize("program", ["from charengine.cli import main", "from deployments.standby import main"])
def test_a_process_does_not_look_through_all_there_is_once_more_when_it_ends(program: str) -> None:
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000))\n"
        f"{program}\n"
        "sys.argv = ['charengine', '--version']\n"
        "import inspect, os, subprocess\n"
        "sys.stdin = open(os.devnull)\n"
        "main([]) if inspect.signature(main).parameters else main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.splitlines()[-1] == "True"
