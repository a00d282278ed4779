"""The Prefect server that a run uses: one that is there, or its own."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable

from charengine.errors import StageFailed
from charengine.machine.addresses import answers, use_services
from charengine.machine.environment import apply_defaults, for_children
from charengine.machine.home import Home
from charengine.machine.processes import HOST, any_free_port, end, spawn

START_SECONDS = 120.0  # the first start makes the database


def reach_prefect(home: Home) -> Callable[[], None]:
    """Use the servers of `charengine up`, or those the user named, or start one; call the result to wait for it."""
    apply_defaults(home.create())
    use_services(home)
    return (lambda: None) if os.environ.get("PREFECT_API_URL") else start_prefect(home)


def start_prefect(home: Home) -> Callable[[], None]:
    """Start a Prefect server for this process and point Prefect at it; call the result to wait until it answers.

    Prefect's own temporary server does not start before it is needed, and stays behind when we are killed. Call this before
    Prefect is imported: it reads the address then, and this server must end after everything of Prefect has.
    """
    api = f"http://{HOST}:{any_free_port()}/api"
    os.environ["PREFECT_API_URL"] = api
    log_file = home.logs / "prefect-server.log"
    with log_file.open("wb") as output:
        port = api.rsplit(":", 1)[1].removesuffix("/api")
        server = spawn(["deployments.server", "--port", port], output, for_children())
    atexit.register(end, server)

    def wait() -> None:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{api}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise StageFailed(f"Prefect's server did not start; see {log_file}")
            time.sleep(0.1)

    return wait
