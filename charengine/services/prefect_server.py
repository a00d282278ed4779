"""The Prefect server that a run uses: one that is there, or its own."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from pathlib import Path

from charengine.errors import BadInput, EngineError, MissingDependency, StageFailed
from charengine.machine.addresses import answers, silence_of, use_services
from charengine.machine.databases import database_problem, prefect_database
from charengine.machine.environment import DEFAULTS, apply_defaults, for_children
from charengine.machine.home import Home
from charengine.machine.places import space_problems
from charengine.machine.processes import HOST, any_free_port, end, spawn
from charengine.machine.variables import API, check_variables, prefect_problems
from charengine.services.prefect_api import PrefectApi

DEPLOYMENT = "character/character"  # what hands a character to a worker
NO_SUCH_PAGE = (404, 405)
PAUSES = (0.0, 1.0, 2.0)  # seconds before each question
START_SECONDS = 120.0  # the first start makes the database


def reach_prefect(home: Home, workers: bool = False) -> Callable[[], None]:
    """Use the server that the user named, or that of `charengine up`, or start one; call the result to wait for it.

    Args:
        home: whose server.
        workers: characters are handed to a work pool; a server of one's own has none.

    Raises:
        MissingDependency: the server that the user named does not answer, or there is no work pool.
        BadInput: something else answers there, or a variable is wrong.
    """
    check_variables()
    apply_defaults(home.create())
    if named := os.environ.get(API):
        _must_answer(named)
    use_services(home)
    if workers:
        _must_have_pool(os.environ.get(API, ""))
    return (lambda: None) if os.environ.get(API) else start_prefect(home)


def _must_answer(api: str) -> None:
    """One that is busy may be late, and is asked again."""
    why = ""
    for pause in PAUSES:
        time.sleep(pause)
        if not (why := silence_of(f"{api.rstrip('/')}/health")):
            return _must_be_prefect(api)
    raise MissingDependency(
        f"{API}={api} does not answer ({why}): start the Prefect server that it names, or unset the variable to have one started"
    )


def _must_be_prefect(api: str) -> None:
    """Prefect says `true` of its health; whoever asks for a password, or is down behind a proxy, may be Prefect."""
    try:
        is_prefect = PrefectApi(api.rstrip("/")).get("health") is True
    except ValueError:
        is_prefect = False
    except OSError as error:
        is_prefect = getattr(error, "code", None) not in NO_SUCH_PAGE
    if not is_prefect:
        raise BadInput(
            f"{API}={api} is answered by something that is no Prefect server: its API ends in /api; correct or unset the variable"
        )


def _must_have_pool(api: str) -> None:
    """Who takes characters that are handed over."""
    if not api:
        raise MissingDependency(
            "--workers hands the characters to the workers of `charengine up`, which does not run with this home: start it in another "
            "terminal, or leave --workers away to make them here"
        )
    try:
        PrefectApi(api.rstrip("/")).get(f"deployments/name/{DEPLOYMENT}")
    except (OSError, ValueError) as error:  # one that is busy is asked patiently by the cast itself
        if getattr(error, "code", None) in NO_SUCH_PAGE:
            raise MissingDependency(
                f"the Prefect server at {api} has no deployment {DEPLOYMENT}: python -m deployments.set_up makes it "
                "(docs/howto/many-machines.md), or leave --workers away to make the characters here"
            ) from error


def _not_started(home: Home, what: str, log_file: Path) -> EngineError:
    """Why a server of our own did not start, where it can be told: a disk that is full, or what the user has set for it."""
    failed = f"Prefect's server did not start: {what}; see {log_file}"
    database = prefect_database(home)
    torn = database_problem(database) if database else ""
    if problems := prefect_problems(it_failed=True) or list(filter(None, [torn])):
        return BadInput("\n".join((failed, *problems)))
    if full := space_problems({home.root, Path(os.environ["PREFECT_HOME"])}, "embedded"):
        return BadInput(f"{failed}\n{full[0]}")
    ours = {**DEFAULTS, "PREFECT_HOME": str(home.prefect), API: os.environ[API]}
    set_ones = [name for name, value in os.environ.items() if name.startswith("PREFECT_") and ours.get(name) != value]
    chosen = [name for name in set_ones if not name.startswith("PREFECT_LOGGING_")]
    return BadInput(f"{failed}\ncorrect or unset {', '.join(chosen)}") if chosen else StageFailed(failed)


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
                raise _not_started(home, f"it ended with status {status}", log_file)
            if time.monotonic() > deadline:
                busy = f"it does not answer after {START_SECONDS:g} s, as on a machine that is busy with other work; try again when it is less so"
                raise _not_started(home, busy, log_file)
            time.sleep(0.1)

    return wait
