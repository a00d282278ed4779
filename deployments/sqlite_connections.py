"""SQLite connections that give their lock back when they are closed, whoever still holds a cursor of theirs.

A request whose caller went away is cancelled, in the middle of a transaction if need be. SQLAlchemy closes its connection, but
since Python 3.11 that does not end the transaction while a cursor lives, and the cursor lives in the cancellation's own traceback:
the database stays locked until the garbage collector comes by, for minutes on a quiet server (SQLAlchemy 2.0.58, aiosqlite 0.22.1).
"""

from __future__ import annotations

import sqlite3
from typing import Any

import sqlalchemy as sa


class UnlockingConnection(sqlite3.Connection):
    """A connection that rolls back what was not committed before it is closed."""

    def close(self) -> None:
        """Give the lock back, then close; a closed one may be closed again."""
        try:
            self.rollback()
        except sqlite3.ProgrammingError:
            pass  # closed already
        finally:
            super().close()


def give_locks_back() -> None:
    """All SQLite connections that SQLAlchemy makes in this process from now on are such."""
    if not sa.event.contains(sa.engine.Engine, "do_connect", _unlocking):
        sa.event.listen(sa.engine.Engine, "do_connect", _unlocking)


def _unlocking(dialect: Any, _record: Any, _given: list[Any], options: dict[str, Any]) -> None:
    if dialect.name == "sqlite":
        options.setdefault("factory", UnlockingConnection)
