"""Child processes that never outlive us, the ports they listen on, and the Prefect server of a single run."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import IO, TypeVar

from charengine.errors import BadInput
from charengine.writing import begun, is_running

T = TypeVar("T")

HOST = "127.0.0.1"
PORTS_END = 65536
STOP_SECONDS = 15.0
PYTHON_MODULE = (sys.executable, "-P", "-m")  # -P: modules are not searched in the folder where the user stands


def choose_port(wanted: int | None, default: int) -> int:
    """The port asked for, or the first free one from the default on.

    Raises:
        BadInput: the one asked for is taken.
    """
    if wanted is not None:
        if not is_port(wanted):
            raise BadInput(f"port {wanted} does not exist; choose one from 1 to 65535")
        if not _is_free(wanted):
            raise BadInput(f"port {wanted} is taken by another program; choose another, or leave it out")
        return wanted
    for port in range(default, min(default + 100, PORTS_END)):
        if _is_free(port):
            return port
    raise BadInput(f"no free port from {default} to {default + 99}; name one")


def is_port(number: object) -> bool:
    """Whether a port can have this number."""
    return type(number) is int and 0 < number < PORTS_END


def any_free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def this_process() -> str:
    """This process, among all machines' that share a tracking server: host, process id, and when it began, since ids come again."""
    pid = os.getpid()
    began = begun(pid)
    return f"{platform.node()}:{pid}{f'_{began}' if began else ''}"


def has_ended(process: str) -> bool:
    """Whether a process (`this_process`) of this machine runs no more; of other machines' nobody here knows."""
    host, _, named = process.rpartition(":")
    pid, _, began = named.partition("_")
    if host != platform.node() or not pid.isdigit():
        return False
    return not is_running(int(pid)) or began not in ("", begun(int(pid)))


def spawn(command: list[object], output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A child with a session of its own, so that Ctrl-C reaches only us, and that dies when we do."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*PYTHON_MODULE, *(str(part) for part in command)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )

    return start() if threading.current_thread() is threading.main_thread() else _by_a_thread_that_stays(start)


def _by_a_thread_that_stays(start: Callable[[], T]) -> T:
    """Linux takes the end of the thread that started a child for that of its parent: a run in a thread had left no server for the next."""
    outcome: Future[T] = Future()

    def stay() -> None:
        try:
            outcome.set_result(start())
        except BaseException as error:
            outcome.set_exception(error)
            return
        threading.Event().wait()

    threading.Thread(target=stay, name="parent", daemon=True).start()
    return outcome.result()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end(popen: subprocess.Popen[bytes]) -> None:
    """Terminate a child, and kill it when it does not go."""
    popen.terminate()
    try:
        popen.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    end_group(popen.pid)


def end_group(pid: int) -> None:
    """Kill what a child that has ended left behind in its group: MLflow's server has a child of its own, which holds the port."""
    if os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def end_left_group(pid: int, home: str) -> None:
    """The same for a process of an earlier `up`, which may be long gone and its number another's: only what serves this home.

    Args:
        pid: that it had.
        home: the home folder, as its environment names it.
    """
    import psutil

    for process in psutil.process_iter() if os.name == "posix" else ():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == pid and process.environ().get("CHARENGINE_HOME") == home:
                process.kill()
