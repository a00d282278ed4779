"""Processes forked by one that has imported everything once, as a worker uses them (`deployments/standby.py --fork`); Linux alone.

To import Prefect, torch and MLflow takes eight seconds of a processor; a fork takes some milliseconds, and shares the memory.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from signal import SIGKILL, SIGTERM, Signals, pidfd_send_signal

import anyio
import anyio.abc

from deployments.standby import REFUSED

CHUNK = 65536
CAN_FORK = sys.platform == "linux" and hasattr(os, "pidfd_open")


class NotForked(OSError):
    """The process that forks has ended."""


class Nursery:
    """The process that imports once and forks.

    Args:
        command: that starts it.
        environment: of it, and of what it forks until that is told another.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        ours, its = socket.socketpair()
        with its:
            self._popen = subprocess.Popen(command, env=dict(environment), stdin=its, start_new_session=True)
        self._ask = ours

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def refused(self) -> bool:
        """Whether it ended since it may not fork."""
        return self._popen.poll() == REFUSED

    def fork(self) -> Forked:
        """A process that waits; it begins when the imports are done.

        Raises:
            NotForked: there is nobody to do it.
        """
        pipes = [os.pipe() for _ in range(4)]
        (child_in, stdin), (stdout, child_out), (stderr, child_err), (told, telling) = pipes
        theirs = [child_in, child_out, child_err, telling]
        try:
            socket.send_fds(self._ask, [b"f"], theirs)
        except OSError as error:
            for descriptor in (stdin, stdout, stderr, told):
                os.close(descriptor)
            raise NotForked(f"nobody forks a process ({error})") from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return Forked(Sending(stdin), Receiving(stdout), Receiving(stderr), Receiving(told))

    def close(self) -> None:
        """It goes; what it has forked stays."""
        self._ask.close()
        self._popen.terminate()  # it may still import
        self._popen.wait()


class _End:
    """One of a pipe's two.

    Args:
        descriptor: its number.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._closed = False

    async def aclose(self) -> None:
        """Close it; whoever has the other end is told so."""
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)


class Receiving(_End, anyio.abc.ByteReceiveStream):
    """The end of a pipe that is read."""

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """What comes next."""
        while not self._closed:
            with suppress(BlockingIOError):
                if data := os.read(self._descriptor, max_bytes):
                    return data
                break
            await anyio.wait_readable(self._descriptor)
        raise anyio.EndOfStream

    def now(self) -> bytes | None:
        """What is there; None when that is nothing yet, empty when nothing will come."""
        if self._closed:
            return b""
        try:
            return os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return None


class Sending(_End, anyio.abc.ByteSendStream):
    """The end of a pipe that is written."""

    async def send(self, item: bytes) -> None:
        """All of it."""
        while item:
            try:
                item = item[os.write(self._descriptor, item) :]
            except BlockingIOError:
                await anyio.wait_writable(self._descriptor)
            except BrokenPipeError as error:
                raise anyio.BrokenResourceError from error


class Forked(anyio.abc.Process):
    """A process of somebody else's making, with what `anyio` says of its own.

    Args:
        stdin: its input.
        stdout: its output.
        stderr: its errors.
        told: its number on a line, and at its end the exit status on another.
    """

    def __init__(self, stdin: Sending, stdout: Receiving, stderr: Receiving, told: Receiving) -> None:
        self._streams = stdin, stdout, stderr
        self._told = told
        self._said = b""
        self._over = False  # nothing more will be told
        self._watched = -1  # descriptor of the process: its number may be another's by and by

    async def begun(self) -> int:
        """Its number, when it is there.

        Raises:
            NotForked: the process that was to fork it has ended.
        """
        while not self.pid:
            try:
                self._hear(await self._told.receive())
            except anyio.EndOfStream as error:
                raise NotForked("the process that forks has ended") from error
        return self.pid

    @property
    def pid(self) -> int:
        """Its number; 0 while it has not begun."""
        return next(iter(self._numbers()), 0)

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus a signal's number; as if killed when nobody is left who knows; None while it runs."""
        if len(numbers := self._numbers()) > 1:
            return numbers[1]
        return -SIGKILL if self._over and not self._alive() else None

    def _numbers(self) -> list[int]:
        """What was told: its number, its exit status."""
        while not self._over and (heard := self._told.now()) is not None:
            self._hear(heard)
        return [int(line) for line in self._said.split(b"\n")[:-1]]

    def _hear(self, heard: bytes) -> None:
        self._said += heard
        self._over = self._over or not heard
        if self._watched < 0 and b"\n" in self._said:
            with suppress(ProcessLookupError):  # it has ended, and was waited for
                self._watched = os.pidfd_open(int(self._said.split(b"\n")[0]))

    def _alive(self) -> bool:
        """Whether it goes on, maybe after the process that forked it has died."""
        return self._watched >= 0 and not select.select([self._watched], [], [], 0)[0]

    async def wait(self) -> int:
        """The exit status, once it has ended."""
        while (code := self.returncode) is None:
            if self._over:
                await anyio.wait_readable(self._watched)
                continue
            try:
                self._hear(await self._told.receive())
            except anyio.EndOfStream:
                self._over = True
        return code

    def send_signal(self, signal: Signals) -> None:
        """Send it a signal, if it has begun and not ended."""
        if self.returncode is None and self._watched >= 0:
            with suppress(ProcessLookupError):
                pidfd_send_signal(self._watched, signal)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(SIGKILL)

    @property
    def stdin(self) -> Sending:
        """Its input."""
        return self._streams[0]

    @property
    def stdout(self) -> Receiving:
        """Its output."""
        return self._streams[1]

    @property
    def stderr(self) -> Receiving:
        """Its errors."""
        return self._streams[2]

    async def aclose(self) -> None:
        """Close its input, so that one that waits goes, and wait for its end."""
        await self.stdin.aclose()
        try:
            await self.wait()
        except BaseException:
            self.kill()
            raise
        finally:
            for stream in (*self._streams, self._told):
                await stream.aclose()
            if self._watched >= 0:
                os.close(self._watched)
                self._watched = -1
