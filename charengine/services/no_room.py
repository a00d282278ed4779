"""A server whose disk is full says so, with a status of its own: nobody asks it again, as who hears of a defect does.

Prefect on SQLite answers 500 then, as it does while PostgreSQL is started again, which its client waits for: each of a run's last calls
took half a minute or longer (`PREFECT_CLIENT_RETRY_EXTRA_CODES` in charengine/machine/environment.py).
"""

from __future__ import annotations

from pathlib import Path

from charengine.machine.places import full_disk
from charengine.services.local_only import App, Message, Receive, Scope, Send

DEFECT = 500
NO_ROOM = 507  # Insufficient Storage, RFC 4918


class ToldWhenFull:
    """Answers 507 instead of 500 while the disk is full.

    Args:
        app: the server.
        place: of its database.
    """

    def __init__(self, app: App, place: Path) -> None:
        self._app, self._place = app, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or connection, as ASGI has it."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == DEFECT and full_disk(self._place):
                message = {**message, "status": NO_ROOM}
            await send(message)

        await self._app(scope, receive, told)
