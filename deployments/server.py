"""Prefect's server for the pages and programs of this machine alone: `python -m deployments.server --port 4200`.

Prefect answers any web page that a browser shows and any name that it is called by, and its runs may name a command to
execute. docs/decisions/0030-local-servers.md says what is refused here, and why not with a password.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from charengine.machine.addresses import LOOPBACK_NAMES, own_origins
from charengine.machine.environment import CORS_ORIGINS, apply_defaults
from charengine.machine.home import find_home
from charengine.machine.processes import HOST

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FORBIDDEN = 403
POLICY_VIOLATION = 1008  # WebSocket close code, RFC 6455


class LocalOnly:
    """Refuses requests that call the server by a foreign name, or that a foreign page makes.

    The first is DNS rebinding: a page's own name is pointed at 127.0.0.1, so that the browser takes both for one site. The
    second covers WebSockets too, which browsers open for every page whatever the CORS headers say.

    Args:
        app: Prefect's own.
        origins: pages that may call, `scheme://host:port`; their hosts are names of this server as well.
    """

    def __init__(self, app: App, origins: Iterable[str]) -> None:
        self._app = app
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
                f"to allow it, add its origin (http://{host or 'name'}) to {CORS_ORIGINS}"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._origins and urlsplit(origin).netloc != host:
            return f"pages of {origin!r} may not call this server; to allow them, add that origin to {CORS_ORIGINS}"
        return ""


def _hostname(host: str) -> str | None:
    """Of a Host header, without the port; None for what is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def allowed_origins(port: int) -> tuple[str, ...]:
    """The server's own pages, and what the user allows besides in `PREFECT_SERVER_CORS_ALLOWED_ORIGINS`."""
    given = (part.strip() for part in os.environ.get(CORS_ORIGINS, "").split(","))
    return tuple(dict.fromkeys([*own_origins(port), *filter(None, given)]))


def serve(port: int) -> None:
    """Run the server until it is terminated."""
    apply_defaults(find_home())
    origins = allowed_origins(port)
    os.environ[CORS_ORIGINS] = ",".join(origins)
    import uvicorn  # after the environment is complete: Prefect reads it at import
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    app = create_app(final=True)
    uvicorn.run(
        app if "*" in origins else LocalOnly(app, origins),
        host=HOST,
        port=port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args().port)
