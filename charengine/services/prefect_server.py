"""The Prefect server that a run uses: one that is there, or its own."""

from __future__ import annotations

import atexit
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from charengine.errors import BadInput, EngineError, MissingDependency, StageFailed
from charengine.machine.addresses import answers, silence_of, use_services
from charengine.machine.environment import DEFAULTS, apply_defaults, for_children
from charengine.machine.home import Home
from charengine.machine.places import space_problems
from charengine.machine.processes import HOST, any_free_port, end, spawn
from charengine.machine.variables import API, check_variables, chosen_by_user, named_values
from charengine.services.prefect_api import PrefectApi

log = logging.getLogger(__name__)

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
    start: Callable[[], None] = (lambda: None) if os.environ.get(API) else start_prefect(home)

    def wait() -> None:
        _read_settings()
        start()

    return wait


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
    """Prefect says `true` when it is asked for its health; whoever asks for a password, or is down behind a proxy, may be Prefect."""
    try:
        with urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=10.0) as response:
            is_prefect = response.read(10).strip() == b"true"
    except urllib.error.HTTPError as error:
        error.close()
        is_prefect = error.code not in NO_SUCH_PAGE
    except (OSError, http.client.HTTPException):  # it answered just now
        return
    if not is_prefect:
        raise BadInput(
            f"{API}={api} is answered by something that is no Prefect server: give the address of its API, http://HOST:4200/api, or "
            "unset the variable to have one started"
        )


def _must_have_pool(api: str) -> None:
    """Who takes characters that are handed over: what `charengine up` and `python -m deployments.set_up` make."""
    if not api:
        raise MissingDependency(
            "--workers hands the characters to the workers of `charengine up`, which does not run with this home: start it in another "
            f"terminal (or name a server that has workers in {API}), or leave --workers away to make them here"
        )
    try:
        PrefectApi(api.rstrip("/")).get(f"deployments/name/{DEPLOYMENT}")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in NO_SUCH_PAGE:
            raise MissingDependency(
                f"the Prefect server at {api} has no deployment {DEPLOYMENT}, so no worker would make the characters: make it with "
                "python -m deployments.set_up (docs/howto/many-machines.md), or leave --workers away to make them here"
            ) from error
    except (OSError, ValueError) as error:  # busy: the cast itself asks patiently
        log.warning("Prefect at %s does not say whether it has workers (%s)", api, error)


def _read_settings() -> None:
    """Prefect reads its variables when it is imported, which fails at one that it cannot read."""
    try:
        import prefect.settings

        prefect.settings.get_current_settings()
    except ValidationError as error:
        wrong = named_values([found["input"] for found in error.errors()])
        raise BadInput(
            f"{wrong}: Prefect cannot read it ({error.errors()[0]['msg']}); correct it, or unset it"
        ) from error


def _not_started(home: Home, what: str, log_file: Path) -> EngineError:
    """Why a server of our own did not start, as far as it can be told: a disk that is full, or what the user has set for it."""
    failed = f"Prefect's server did not start: {what}; see {log_file}"
    place = Path(os.environ.get("PREFECT_HOME") or home.prefect)
    if full := space_problems({home.root, place}, "embedded"):
        return BadInput(f"{failed}\n{full[0]}")
    if chosen := chosen_by_user("PREFECT_SERVER_", DEFAULTS):
        return BadInput(
            f"{failed}\nset for it {'is' if len(chosen) == 1 else 'are'} {', '.join(chosen)}: correct or unset what is wrong"
        )
    return StageFailed(failed)


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
