"""A process that waits for a run with everything imported: `python -m deployments.standby MODULE…`, started by `deployments/worker.py`.

It reads one line: the run's environment and folder. From then on it is `python -m prefect.engine`. Its input is closed when
nobody needs it any more, or its worker has died.

With `--fork` before the modules it imports them once for all: its input is a socket, and for each message there it forks a process
that waits as above (`deployments/forked.py` asks). Modules after `--then` are imported when the first has been forked, for which a run may
wait already. It goes when the socket is closed; what it has forked goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import socket
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress

from charengine.machine.collection import collect_rarely, end_without_looking, keep_for_good

ENGINE = "prefect.engine"
OF_THE_ENGINE = ("prefect.flow_engine", "prefect._internal.control_listener", "prefect._internal.metrics")
FORK, THEN = "--fork", "--then"
REFUSED = 3  # exit status of one that may not fork
# a fork of a process that has one of these open cannot use the GPU
DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dxg", "/dev/dri")
GIVEN = 4  # descriptors with each message: input, output and errors of the process, and where its number and its end are told


def main(words: list[str]) -> None:
    """Import, wait, and be the engine."""
    collect_rarely()
    end_without_looking()
    if words[:1] == [FORK]:
        first, _, later = " ".join(words[1:]).partition(THEN)
        _import(*OF_THE_ENGINE, *first.split())
        if not Forks(socket.socket(fileno=os.dup(sys.stdin.fileno())), later.split()).serve():
            return
    else:
        _import(*OF_THE_ENGINE, *words)
    _wait_and_be_the_engine()


def _import(*modules: str) -> None:
    for module in modules:
        importlib.import_module(module)


def _wait_and_be_the_engine() -> None:
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
    from tasks.heartbeats import instead_of_prefects  # with what has been imported already

    with instead_of_prefects():
        runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


class Forks:
    """Forks a process for each message, tells its number at once, and its exit status when it has ended.

    Args:
        asked: the socket; a message is one byte with descriptors.
        later: modules that are imported once the first process is there.
    """

    def __init__(self, asked: socket.socket, later: Sequence[str] = ()) -> None:
        self._asked, self._later = asked, later
        self._ends: dict[int, tuple[int, int]] = {}  # descriptor of a process → its number, and where its end is told
        self._poll = select.poll()
        self._poll.register(asked, select.POLLIN)

    def serve(self) -> bool:
        """Until nobody asks any more; True in a process that was forked.

        Raises:
            SystemExit: what was imported has begun something that a fork would lose.
        """
        refuse_what_is_lost()
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._ends:
                    self._tell_end(descriptor)
                    continue
                message, given, *_ = socket.recv_fds(self._asked, 1, GIVEN)
                if not message:
                    return False
                if self._fork(given):
                    return True
                if self._later:
                    _import(*self._later)
                    self._later = ()
                    refuse_what_is_lost()

    def _fork(self, given: list[int]) -> bool:
        *streams, told = given
        sys.stdout.flush()
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            number = os.fork()  # Python 3.12 warns of the one thread there is: of Arrow's memory, which knows forks
        if number == 0:
            self._become(streams, told)
            return True
        for stream in streams:
            os.close(stream)
        _say(told, number)
        watched = os.pidfd_open(number)
        self._ends[watched] = number, told
        self._poll.register(watched, select.POLLIN)
        return False

    def _become(self, streams: list[int], told: int) -> None:
        """A process like one that was started: its own session, its own three streams, and nothing of the others'."""
        os.setsid()
        for stream, place in zip(streams, (0, 1, 2), strict=True):
            os.dup2(stream, place)
            os.close(stream)
        self._asked.close()
        for descriptor in (told, *self._ends, *(end for _, end in self._ends.values())):
            os.close(descriptor)

    def _tell_end(self, descriptor: int) -> None:
        number, told = self._ends.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(number, 0)
        _say(told, os.waitstatus_to_exitcode(status))
        os.close(told)


def refuse_what_is_lost() -> None:
    """Threads do not come along with a fork, and a GPU does not know it; else what is there stays shared with what is forked.

    Raises:
        SystemExit: there is one of these.
    """
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    held = [path for path in _open_files() if path.startswith(DEVICES)]
    if threads or held:
        sys.stderr.write(f"no process can be forked beside {', '.join([*threads, *held])}; each run gets its own\n")
        sys.exit(REFUSED)
    keep_for_good()


def _open_files() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


def _say(told: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the worker has died, or does not care any more
        os.write(told, f"{number}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
