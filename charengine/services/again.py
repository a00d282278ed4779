"""A server that is busy is asked again before whoever called it hears of that.

Prefect on SQLite answers 503 ("database is locked") to all but one of the requests that write at the same time: of six forms sent
together one was taken. Prefect's own client asks again, its page does not. So the server does, for every caller alike; what was
answered so was rolled back, so nothing is done twice.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from charengine.services.local_only import App, Message, Receive, Scope, Send

BUSY = 503
PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # seconds before each further try
LONGEST = 5.0  # seconds after which a request is not tried again: SQLite may have waited in each, and callers wait 20 s at most
LARGEST = 2_000_000  # bytes of a request that is kept to be sent again


class AgainWhenBusy:
    """Repeats requests that are answered with 503, one at a time, so that they do not lock each other out again.

    Args:
        app: the server.
        pauses: before each further try.
    """

    def __init__(self, app: App, pauses: tuple[float, ...] = PAUSES) -> None:
        self._app, self._pauses = app, pauses
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, whole = await _read(receive)
        if not whole:
            await self._app(scope, _replay(body, receive, more=True), send)
        else:
            for message in await self._refusal(scope, body, receive, send):
                await send(message)

    async def _refusal(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> list[Message]:
        """Try, and again; what the server says when it stays busy, nothing when it answered."""
        until = time.monotonic() + LONGEST
        said = await self._try(scope, body, receive, send)
        with suppress(TimeoutError):
            for pause in self._pauses if said else ():
                if (left := until - time.monotonic()) <= 0:
                    break
                async with asyncio.timeout(left):
                    await self._turn.acquire()
                try:
                    await asyncio.sleep(pause)
                    said = await self._try(scope, body, receive, send)
                finally:
                    self._turn.release()
                if not said:
                    break
        return said

    async def _try(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> list[Message]:
        """What the server says when it is busy, kept back; nothing when it says anything else, which is sent."""
        busy: list[Message] = []

        async def unless_busy(message: Message) -> None:
            if busy or (message["type"] == "http.response.start" and message["status"] == BUSY):
                busy.append(message)
            else:
                await send(message)

        own = {**scope, "state": dict(scope.get("state") or {})}  # a server writes into both
        try:
            await self._app(own, _replay(body, receive), unless_busy)
        except Exception:  # Starlette answers, and raises what it answered for again, for the log
            if not busy:
                raise
        return busy


async def _read(receive: Receive) -> tuple[bytes, bool]:
    """What is sent, and whether that is all of it."""
    parts, size = [], 0
    while size <= LARGEST:
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts), True
    return b"".join(parts), False


def _replay(body: bytes, receive: Receive, more: bool = False) -> Receive:
    """The request's body as one message, then whatever else comes."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": more}

    return replayed
