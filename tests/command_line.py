"""The command line run in processes of its own, as tests call it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from charengine.machine.home import Home

ROOT = Path(__file__).parent.parent


def child_environment(home: Home, prefect_api: str = "") -> dict[str, str]:
    """The environment of a `charengine` process on a test's home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    api = {"PREFECT_API_URL": prefect_api} if prefect_api else {}
    return {**kept, "CHARENGINE_HOME": str(home.root), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **api}


def last_line(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `--json` said."""
    return dict(json.loads(process.stdout.strip().splitlines()[-1]))
