"""SQLite databases that cannot be opened are told at once: MLflow tries for minutes without a word, Prefect's server only ends."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.machine.places import folder_problems

BUSY = ("locked", "busy")  # in the words of a database that another process writes to


def database_problem(path: Path) -> str:
    """Why a database cannot be opened, with what to do; empty where it can be, or is to be made.

    Args:
        path: of its file.
    """
    remedy = "move it away, and a new one is made"
    try:
        if not files.exists(path):
            return next(iter(folder_problems(path.parent, f"database {path}:")), "")
        if not files.is_file(path):
            return f"database {path}: it is no plain file; {remedy}"
        place = f"{path.absolute().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(place, uri=True, timeout=1)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except BadInput as error:
        return str(error)
    except sqlite3.Error as error:
        return "" if any(word in str(error) for word in BUSY) else f"database {path}: {error}; {remedy}"
    return ""


def prefect_database(home: Home) -> Path | None:
    """The file of a Prefect server that is started here; None where the user named a database of another kind or place, or none that can be."""
    if os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        return None
    try:
        return files.expanded(os.environ.get("PREFECT_HOME") or home.prefect) / "prefect.db"
    except BadInput:
        return None  # charengine/machine/variables.py tells it


def database_problems(home: Home) -> list[str]:
    """Why the servers of `charengine up` cannot open what they keep; empty where they can."""
    places = (home.mlflow / "mlflow.db", prefect_database(home))
    return [problem for place in places if place and (problem := database_problem(place))]
