"""The command line, and Python, run in processes of their own, as tests call them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
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
    """A fresh interpreter as a user starts one, which must end well: it searches the folder first, as notebooks do."""
    given = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=given)
    assert done.returncode == 0, done.stderr
    return done


# each line asks for a process: the command line in a fork of what has imported the heavy libraries, before any thread is begun
FORKS = """
import json, os, runpy, sys
import diffusers.models.unets.unet_2d_condition, lycoris, torch, transformers
for line in sys.stdin:
    if child := os.fork():
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    asked = json.loads(line)
    for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = ["charengine", *asked["arguments"]]
    break
else:
    sys.exit()
runpy.run_module("charengine.cli", run_name="__main__", alter_sys=True)
"""


class Forks:
    """Starts processes of the command line that need not import torch and diffusers: that takes longer than a short run."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", FORKS], env=environment, **pipes)
        self._said, self._count = tempfile.TemporaryDirectory(prefix="charengine-said-"), 0

    def start(self, arguments: Sequence[object], environment: dict[str, str], folder: Path) -> Fork:
        """The next process; the one before has ended."""
        self._count += 1
        out, err = (Path(self._said.name) / f"{self._count}.{name}" for name in ("out", "err"))
        asked = {"arguments": [str(one) for one in arguments], "environment": environment, "folder": str(folder)}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({**asked, "out": str(out), "err": str(err)}) + "\n")
        self._process.stdin.flush()
        return Fork(int(self._process.stdout.readline()), self._process.stdout.readline, (out, err))

    def close(self) -> None:
        """No more are wanted."""
        self._process.communicate(timeout=60)
        self._said.cleanup()


class Fork:
    """One process, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, status: Callable[[], str], said: tuple[Path, Path]) -> None:
        self.pid, self._said = pid, said
        self.returncode: int | None = None
        self._waiting = threading.Thread(target=lambda: setattr(self, "returncode", int(status())), daemon=True)
        self._waiting.start()

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said, when it has ended."""
        self._waiting.join(timeout)
        assert self.returncode is not None, f"process {self.pid} goes on after {timeout} s"
        out, err = (path.read_text(encoding="utf-8") for path in self._said)
        return out, err
