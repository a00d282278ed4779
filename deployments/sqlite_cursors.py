"""A cursor of SQLite's is closed in its connection's own thread, whoever lets go of it: else Prefect's server stands still for a minute.

Who writes while another does waits inside of SQLite, holding its connection, for the 60 s that Prefect allows. A cursor that a
failed or cancelled statement has left open is closed when the garbage collector finds it, in whichever thread that runs; on the
thread of the server's event loop it waited there for the connection, and so nobody could end what that waits for. Seen under load
(`benchmarks/load.py`): every write and many reads stood still for a minute, again and again, and then failed as "database is locked".
"""

from __future__ import annotations

from aiosqlite.cursor import Cursor


def close_in_their_own_threads() -> None:
    """Have every cursor that is let go of closed by the thread that works for its connection, after what that is doing."""
    Cursor.__del__ = _close  # type: ignore[attr-defined]


def _close(cursor: Cursor) -> None:
    cursor._conn._tx.put_nowait((None, cursor._cursor.close))
