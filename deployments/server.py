"""Prefect's server for the pages and programs of this machine alone: `python -m deployments.server --port 4200`.

Prefect answers any web page that a browser shows and any name that it is called by, and its runs may name a command to
execute. docs/decisions/0030-local-servers.md says what is refused here, and why not with a password.
"""

from __future__ import annotations

import argparse
import os

from charengine.machine.addresses import own_origins
from charengine.machine.collection import before_serving
from charengine.machine.environment import CORS_ORIGINS, apply_defaults
from charengine.machine.home import find_home
from charengine.machine.processes import HOST
from charengine.services.again import AgainWhenBusy
from charengine.services.local_only import LocalOnly
from charengine.services.no_room import ToldWhenFull


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

    from deployments.artifact_index import index_artifacts
    from deployments.sqlite_connections import give_locks_back
    from deployments.sqlite_cursors import close_in_their_own_threads

    give_locks_back()
    close_in_their_own_threads()
    whole = get_current_settings()
    settings = whole.server
    app = ToldWhenFull(AgainWhenBusy(index_artifacts(create_app(final=True))), whole.home)
    before_serving()
    uvicorn.run(
        app if "*" in origins else LocalOnly(app, origins, CORS_ORIGINS),
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
