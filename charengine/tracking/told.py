"""Whether MLflow has been told all there is to tell of a run, asked of the home's own database without importing MLflow.

Where it cannot be known so (a server elsewhere, a database of another version), it is not known: a run then asks MLflow itself.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

from charengine.machine.addresses import database_uri, tracking_uri
from charengine.machine.home import Home
from charengine.machine.processes import has_ended
from charengine.tracking.open_tracker import PROJECT
from charengine.tracking.protocol import KEY_TAG, PROCESS_TAG
from charengine.tracking.waiting import is_left

SECONDS = 1.0  # that the database may be busy
FINISHED = """
SELECT 1 FROM runs JOIN experiments USING (experiment_id) JOIN tags USING (run_uuid)
WHERE runs.run_uuid = ? AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'
AND experiments.name = ? AND experiments.lifecycle_stage = 'active' AND tags."key" = ? AND tags.value = ?
"""
OPEN = """
SELECT owners.value FROM runs JOIN experiments USING (experiment_id) JOIN tags AS keys USING (run_uuid)
LEFT JOIN tags AS owners ON owners.run_uuid = runs.run_uuid AND owners."key" = ?
WHERE runs.status = 'RUNNING' AND runs.lifecycle_stage = 'active' AND experiments.name = ? AND keys."key" = ?
"""


def is_told(home: Home, run_id: str, key: str) -> bool:
    """Whether MLflow's run with this id has this key and is finished, and nothing at all waits for the next run to tell it.

    What waits are journals and points of processes that have ended, and the runs that these left open.
    """
    database = home.mlflow / "mlflow.db"
    if tracking_uri(home) != database_uri(home) or not database.is_file() or is_left(home):
        return False
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=SECONDS)) as asked:
            finished = asked.execute(FINISHED, (run_id, PROJECT, KEY_TAG, key)).fetchone()
            owners = [owner for (owner,) in asked.execute(OPEN, (PROCESS_TAG, PROJECT, KEY_TAG))]
    except sqlite3.Error:
        return False
    return bool(finished) and not any(owner is None or has_ended(owner) for owner in owners)
