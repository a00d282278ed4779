"""The Prefect server that a run uses: one that is there, or its own."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable

from charengine.errors import MissingDependency, StageFailed
from charengine.machine.addresses import answers, silence_of, use_services
from charengine.machine.environment import apply_defaults, for_children
from charengine.machine.home import Home
from charengine.machine.processes import HOST, any_free_port, end, spawn

API = "PREFECT_API_URL"
PAUSES = (0.0, 1.0, 2.0)  # seconds before each question
START_SECONDS = 120.0  # the first start makes the database


def reach_prefect(home: Home) -> Callable[[], None]:
    """Use the server that the user named, or that of `charengine up`, or start one; call the result to wait for it.

    Raises:
        MissingDependency: the server that the user named does not answer.
    """
    apply_defaults(home.create())
    if named := os.environ.get(API):
        _must_answer(named)
    use_services(home)
    return (lambda: None) if os.environ.get(API) else start_prefect(home)


def _must_answer(api: str) -> None:
    """One that is busy may be late, and is asked again."""
    why = ""
    for pause in PAUSES:
        time.sleep(pause)
        if not (why := silence_of(f"{api.rstrip('/')}/health")):
            return
    raise MissingDependency(
        f"{API}={api} does not answer ({why}): start the Prefect server that it names, or unset the variable to have one started"
    )


def start_prefect(home: Home) -> Callable[[], None]:
    """Start a Prefect server for this process and point Prefect at it; call the result to wait until it answers.

    Prefect's own temporary server does not start before it is needed, and stays behind when we are killed. Call this before
    Prefect is imported: it reads the address then, and this server must end after everything of Prefect has.
    """
    api = f"http://{HOST}:{any_free_port()}/api"
    os.environ[API] = api
    log_file = home.logs / "prefect-server.log"
    with log_file.open("wb") as output:
        port = api.rsplit(":", 1)[1].removesuffix("/api")
        server = spawn(["deployments.server", "--port", port], output, for_children())
    atexit.register(end, server)

    def wait() -> None:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{api}/health"):
            if (status := server.poll()) is not None:
                raise StageFailed(f"Prefect's server did not start: it ended with status {status}; see {log_file}")
            if time.monotonic() > deadline:
                raise StageFailed(
                    f"Prefect's server did not start: it does not answer after {START_SECONDS:g} s, as on a machine that is busy with "
                    f"other work; try again when it is less so, or see {log_file}"
                )
            time.sleep(0.1)

    return wait
