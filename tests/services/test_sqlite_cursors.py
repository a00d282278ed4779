"""Prefect's server goes on while a cursor that nobody closed is collected, although its connection waits for another."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from command_line import ROOT, child_environment
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from charengine.machine.home import Home
from deployments import sqlite_cursors

WAITS = 3.0  # seconds that who writes waits for another; Prefect's are 60


@pytest.fixture
def engine(tmp_path: Path) -> AsyncEngine:
    """As Prefect's: a write-ahead log, and transactions that it begins itself."""
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}")

    @sa.event.listens_for(made.sync_engine, "connect")
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA busy_timeout={int(WAITS * 1000)}")
        cursor.close()

    sa.event.listen(made.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return made


async def write(connection: AsyncConnection) -> None:
    await connection.execute(sa.text("INSERT INTO t VALUES (1)"))


async def seconds_of_collecting(engine: AsyncEngine) -> float:
    """While a connection waits for another's transaction, after a statement of its own had failed."""
    async with engine.begin() as other:
        await other.execute(sa.text("CREATE TABLE t (x INT)"))
    gc.collect()
    gc.disable()
    late, other = await engine.connect(), await engine.connect()
    try:
        await late.execute(sa.text("SELECT * FROM t"))
        await write(other)
        await other.commit()
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            await write(late)  # what it has read is out of date
        await late.rollback()
        await write(other)
        waiting = asyncio.create_task(write(late))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        gc.collect()
        took = time.monotonic() - began
        await other.rollback()
        await waiting
        return took
    finally:
        gc.enable()
        for connection in (late, other):
            await connection.close()
        await engine.dispose()


def test_collecting_a_cursor_does_not_wait_for_its_connection_and_what_that_waits_for_can_end(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_cursors.Cursor, "__del__", lambda cursor: None, raising=False)
    sqlite_cursors.close_in_their_own_threads()
    assert asyncio.run(seconds_of_collecting(engine)) < WAITS / 2


def test_prefects_server_does_so(home: Home) -> None:
    code = "import uvicorn; uvicorn.run = lambda app, **how: None; from deployments.server import serve; serve(1); from aiosqlite.cursor import Cursor; print(Cursor.__del__.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(home), capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip() == "deployments.sqlite_cursors", done.stderr
