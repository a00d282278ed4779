"""Who may call a server on this machine: nobody by a foreign name, and no foreign page (docs/decisions/0030-local-servers.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from charengine.machine.addresses import LOOPBACK_NAMES

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FORBIDDEN = 403
POLICY_VIOLATION = 1008  # WebSocket close code, RFC 6455


class LocalOnly:
    """Refuses requests that call the server by a foreign name, or that a foreign page makes.

    The first is DNS rebinding: a page's own name is pointed at 127.0.0.1, so that the browser takes both for one site. The
    second covers WebSockets too, which browsers open for every page whatever the CORS headers say.

    Args:
        app: what is protected.
        origins: pages that may call, `scheme://host:port`; their hosts are names of this server as well.
        variable: of the environment, which adds to them; named in refusals.
    """

    def __init__(self, app: App, origins: Iterable[str], variable: str) -> None:
        self._app = app
        self._variable = variable
        self._origins = frozenset(origins)
        self._names = frozenset(LOOPBACK_NAMES) | {urlsplit(origin).hostname for origin in self._origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or connection, as ASGI has it."""
        problem = "" if scope["type"] == "lifespan" else self._problem(dict(scope["headers"]))
        if not problem:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": problem[:120]})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": FORBIDDEN, "headers": headers})
            await send({"type": "http.response.body", "body": problem.encode()})

    def _problem(self, headers: dict[bytes, bytes]) -> str:
        """Why a request is refused; empty when it is not."""
        host = headers.get(b"host", b"").decode("latin-1")
        if _hostname(host) not in self._names:
            return (
                f"this server does not answer to the name {host!r}; "
                f"to allow it, add its origin (http://{host or 'name'}) to {self._variable}"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._origins and urlsplit(origin).netloc != host:
            return f"pages of {origin!r} may not call this server; to allow them, add that origin to {self._variable}"
        return ""


def _hostname(host: str) -> str | None:
    """Of a Host header, without the port; None for what is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
