"""MLflow's own database, in the home."""

from __future__ import annotations

import contextlib
from importlib.metadata import version

from charengine.errors import BadInput
from charengine.machine.addresses import database_uri, tracking_uri
from charengine.machine.databases import database_problem
from charengine.machine.home import Home
from charengine.machine.locks import single_flight_at_home

# a run is looked for by its key fourteen times a character, and MLflow itself reads that tag of every run there is
BY_TAG = 'CREATE INDEX IF NOT EXISTS charengine_tags ON tags ("key", value)'


def load_libraries(home: Home) -> None:
    """Import MLflow, and what reads this home's database where that is asked itself: a second and a half, for when something is waited for."""
    from mlflow import MlflowClient  # noqa: F401

    if tracking_uri(home) == database_uri(home):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def initialise_database(home: Home) -> None:
    """Create MLflow's tables once, under a lock, in WAL mode: several first processes at once break the database.

    Tags get an index of ours, which MLflow's own changes of its tables leave there: finding a run does not take longer the more there are.

    Raises:
        BadInput: it cannot be opened.
    """
    import sqlite3

    database = home.mlflow / "mlflow.db"
    marker = home.mlflow / f"schema-{version('mlflow')}-tags"

    def is_made() -> bool:
        return marker.exists() and database.exists()

    if problem := database_problem(database):
        raise BadInput(problem)
    if is_made():  # known without importing MLflow, which takes seconds
        return
    import mlflow

    with single_flight_at_home(home.locks / "mlflow-database.lock", "MLflow's database is being made"):
        if is_made():
            return
        if database.exists():
            _upgrade(database_uri(home))
        mlflow.MlflowClient(tracking_uri=database_uri(home)).search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(BY_TAG)
        marker.touch()


def _upgrade(uri: str) -> None:
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True)
