"""The way to MLflow, or to a journal while it is away."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from charengine.errors import BadInput
from charengine.machine.full_disks import warn
from charengine.machine.variables import tracking_problem
from charengine.tracking.journal import JOURNAL, Journal, JournalTracker
from charengine.tracking.protocol import Tracker

if TYPE_CHECKING:
    from charengine.machine.home import Home

PROJECT = "charengine"  # the MLflow experiment

log = logging.getLogger(__name__)


def open_tracker(
    home: Home, *, project: str, name: str, key: str, params: Mapping[str, object], tags: Mapping[str, str]
) -> Tracker:
    """The MLflow run with this key, or one that is written down when MLflow cannot be reached.

    An outage of the tracking server never stops a run: it is logged, and the next run that reaches MLflow, or `charengine up`, sends what was written.

    Raises:
        BadInput: no server will ever be reached by the address that was given.
    """
    if problem := tracking_problem():
        raise BadInput(problem)
    from charengine.tracking.mlflow import open_run

    try:
        return open_run(home, project, name, key, params, tags)
    except Exception as error:  # whatever the server, the database or the network raise
        warn(
            log,
            home.mlflow,
            "this run is not tracked yet: MLflow cannot be used (%s); what it is to be told waits in %s for the next run that reaches it",
            (str(error).splitlines() or [type(error).__name__])[0][:300],
            home.mlflow / JOURNAL,
        )
        return JournalTracker(Journal(home.mlflow / JOURNAL), name, key, None, params, tags)
