"""A process that waits for a run with everything imported: `python -m deployments.standby MODULE…`, started by `deployments/worker.py`.

It reads one line: the run's environment and folder. From then on it is `python -m prefect.engine`. Its input is closed when
nobody needs it any more, or its worker has died.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys

ENGINE = "prefect.engine"
OF_THE_ENGINE = ("prefect.flow_engine", "prefect._internal.control_listener", "prefect._internal.metrics")


def main(modules: list[str]) -> None:
    """Import, wait, and be the engine."""
    for module in (*OF_THE_ENGINE, *modules):
        importlib.import_module(module)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return
    told = json.loads(line)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    sys.argv = [ENGINE]
    sys.modules.pop(ENGINE, None)  # it is to run as the program that it is
    runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
