"""The command line, and Python, run in processes of their own, as tests call them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter as a user starts one: it searches the folder first, as notebooks and `python -c` do."""
    given = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=given)
