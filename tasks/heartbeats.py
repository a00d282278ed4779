"""A flow says every half minute that it lives; who does not is called crashed (deployments/automations/crash-dead-runs.yaml).

Prefect's own do so from a thread that sleeps for whole seconds, and a flow's end waits for it: half a second of every character. No
variable switches them off (without one they come every three minutes), so whoever runs our flows does (`instead_of_prefects`), and
the flows tell the same themselves (`beating`). A flow that is run by others, or whose user has chosen how often, has Prefect's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context

from prefect import runtime
from prefect.events import emit_event
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings

from charengine.machine.environment import DEFAULTS, HEARTBEATS

EVERY = float(DEFAULTS[HEARTBEATS])  # seconds; four may be missed
NAME = "prefect.flow-run.heartbeat"  # what Prefect calls it


@contextmanager
def instead_of_prefects() -> Iterator[None]:
    """Flows that are run until left have no heartbeats of Prefect's, unless the user has said how often they come."""
    if os.environ.get(HEARTBEATS, DEFAULTS[HEARTBEATS]) == DEFAULTS[HEARTBEATS]:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield
    else:
        yield


@contextmanager
def beating() -> Iterator[None]:
    """Beat until left, in a flow that has no heartbeats of Prefect's."""
    run_id = runtime.flow_run.id
    if run_id is None or get_current_settings().flows.heartbeat_frequency is not None:
        yield
        return
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{run_id}",
        "prefect.resource.name": str(runtime.flow_run.name),
    }
    ended = threading.Event()

    def beat() -> None:
        while True:
            with suppress(Exception):  # the run goes on, whatever becomes of its heartbeats
                emit_event(event=NAME, resource=resource)
            if ended.wait(EVERY):
                return

    context = copy_context()  # whom Prefect's events go to stands there
    thread = threading.Thread(target=lambda: context.run(beat), name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
