"""Whether a run's process lives. On its own machine that can be asked; Prefect goes by heartbeats, which a busy machine loses."""

from __future__ import annotations

import math
import platform
from datetime import datetime
from typing import Any

SILENT = "no heartbeat"  # begins what deployments/automations/crash-dead-runs.yaml says


def runs_a_flow(pid: int, before: float = math.inf) -> bool:
    """Whether a process of this machine is one of a flow, and began before a moment (seconds since 1970): process ids come again."""
    import psutil

    try:
        process = psutil.Process(pid)
        line = " ".join(process.cmdline())  # empty of one that has ended and was not waited for
        return process.create_time() < before and ("prefect" in line or "deployments.standby" in line)
    except psutil.Error:
        return False


def as_it_is(run: dict[str, Any]) -> dict[str, Any]:
    """A run of Prefect's; as running, and `unheard`, where it is called crashed for want of heartbeats and its process is here."""
    host, _, pid = str(run.get("infrastructure_pid") or "").rpartition(":")
    said = str((run.get("state") or {}).get("message") or "")
    if (
        run.get("state_type") != "CRASHED"
        or not said.startswith(SILENT)
        or host != platform.node()
        or not pid.isdigit()
    ):
        return run
    ended = datetime.fromisoformat(run["end_time"]).timestamp() if run.get("end_time") else math.inf
    return {**run, "state_type": "RUNNING", "unheard": True} if runs_a_flow(int(pid), ended) else run
