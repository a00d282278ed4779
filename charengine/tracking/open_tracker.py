"""The way to MLflow, or to a tracker that records nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charengine.machine.home import Home
from charengine.tracking.protocol import NullTracker, Tracker

log = logging.getLogger(__name__)


def open_tracker(
    home: Home, *, project: str, name: str, key: str, params: Mapping[str, object], tags: Mapping[str, str]
) -> Tracker:
    """The MLflow run with this key, or a tracker that records nothing when MLflow cannot be reached.

    An outage of the tracking server never stops a run: it is logged, and the run goes on unrecorded.
    """
    from charengine.tracking.mlflow import open_run

    try:
        return open_run(home, project, name, key, params, tags)
    except Exception as error:  # whatever the server, the database or the network raise
        log.warning("this run is not tracked: MLflow cannot be used (%s)", str(error).splitlines()[0][:300])
        return NullTracker()
