"""A request that is cancelled in the middle of a transaction gives the database's lock back at once."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from deployments.sqlite_connections import UnlockingConnection

SLOW = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 6000000) SELECT count(*) FROM t"
CANCELLED = """
import asyncio, os, sys
from tests.services.test_sqlite_connections import cancelled
if sys.argv[2] == "given back":
    from deployments.sqlite_connections import give_locks_back
    give_locks_back()
print(asyncio.new_event_loop().run_until_complete(cancelled(sys.argv[1], int(sys.argv[3]))), flush=True)
os._exit(0)  # aiosqlite waits for ever for a thread that has ended
"""


def is_locked(path: str) -> bool:
    """Whether nobody else can write now."""
    other = sqlite3.connect(path, timeout=0.1, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        other.close()
    return False


async def cancelled(path: str, times: int) -> list[bool]:
    """Whether the database is locked while a request writes, and once it was cancelled and is remembered by a traceback."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _(connection, record) -> None:
        connection.isolation_level = None  # as Prefect does, which says BEGIN itself

    sa.event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    kept: list[BaseException] = []

    async def request() -> None:
        try:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(sa.text("INSERT INTO a VALUES (1)"))
                await session.execute(sa.text(SLOW))
        except asyncio.CancelledError as error:
            kept.append(error)
            raise

    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE a (x)"))
    gc.disable()
    task = asyncio.create_task(request())
    while not is_locked(path):
        await asyncio.sleep(0.01)
    seen = [is_locked(path)]
    for _ in range(times):
        await asyncio.sleep(0.05)
        task.cancel()
    await asyncio.wait([task])
    for _ in range(60):  # the statement itself goes on to its end
        if not is_locked(path):
            break
        await asyncio.sleep(0.1)
    seen.append(is_locked(path))
    assert kept
    return seen


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancelled_request_gives_the_lock_back_while_its_error_is_still_remembered(
    times: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CANCELLED, str(tmp_path / "a.db"), "given back", str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[True, False]", done.stderr[-2000:]


def test_what_was_not_committed_is_rolled_back_and_a_closed_connection_closes_again(tmp_path: Path) -> None:
    path = str(tmp_path / "a.db")
    one = sqlite3.connect(path, isolation_level=None, factory=UnlockingConnection)
    one.execute("CREATE TABLE a (x)")
    one.execute("INSERT INTO a VALUES (1)")  # committed: no transaction is open
    one.execute("BEGIN IMMEDIATE")
    held = one.execute("INSERT INTO a VALUES (2) RETURNING x")
    assert is_locked(path)
    one.close()
    one.close()
    assert not is_locked(path)
    assert sqlite3.connect(path).execute("SELECT x FROM a").fetchall() == [(1,)]
    del held


def test_prefect_s_server_makes_such_connections_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deployments import server

    given: list[object] = []
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: given.append(sqlalchemys_own(tmp_path)))
    monkeypatch.setattr(server, "AgainWhenBusy", lambda app: app)
    monkeypatch.setattr("prefect.server.api.server.create_app", lambda **_: FastAPI())
    try:
        server.serve(4200)
    finally:
        from deployments import sqlite_connections as unlocked

        sa.event.remove(sa.engine.Engine, "do_connect", unlocked._unlocking)
    assert given == [UnlockingConnection]


def sqlalchemys_own(folder: Path) -> type:
    """The class of a connection that SQLAlchemy makes."""
    with sa.create_engine(f"sqlite:///{folder}/b.db").connect() as connection:
        return type(connection.connection.dbapi_connection)
