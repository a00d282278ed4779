"""Processes that are forked for runs: as if each had been started by itself, whatever becomes of the one that forks them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from command_line import ROOT, child_environment

from charengine.machine.home import Home
from deployments import worker
from deployments.forked import CAN_FORK, Forked, NotForked, Nursery
from deployments.worker import Standby

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux alone")

# the real one that forks, without the imports; what it forks does as it is told on its input
TOLD = """
import os, socket, sys
from deployments.standby import Forks
if Forks(socket.socket(fileno=os.dup(0))).serve():
    for line in sys.stdin:
        print(eval(line), flush=True)
    sys.exit(7)
"""


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery([sys.executable, "-c", TOLD], {**os.environ, "PYTHONPATH": str(ROOT)})
    yield made
    made.close()


async def asked(process: Forked, what: str) -> str:
    await process.stdin.send(f"{what}\n".encode())
    said = b""
    while not said.endswith(b"\n"):
        said += await process.stdout.receive()
    return said.decode().strip()


async def ended(process: Forked) -> int:
    await process.aclose()
    code = process.returncode
    assert code is not None
    return code


def test_each_has_a_session_streams_and_exit_status_of_its_own(nursery: Nursery) -> None:
    async def two() -> tuple[list[str], list[int], list[bool]]:
        both = [nursery.fork(), nursery.fork()]
        sessions = [await asked(one, "os.getsid(0)") for one in both]
        mine = [session == str(await one.begun()) for session, one in zip(sessions, both, strict=True)]
        # of the worker's and of the other's it holds nothing: neither would notice the end of the other
        held = [await asked(one, "[n for n in range(3, 99) if os.path.exists(f'/proc/self/fd/{n}')]") for one in both]
        return held, [await ended(one) for one in both], mine

    held, codes, mine = anyio.run(two)
    assert codes == [7, 7] and mine == [True, True] and held == ["[]", "[]"]


def test_it_is_known_whether_it_lives_and_by_which_signal_it_died(nursery: Nursery) -> None:
    async def killed() -> tuple[int | None, int]:
        process = nursery.fork()
        await process.begun()
        before = process.returncode
        process.kill()
        return before, await process.wait()

    assert anyio.run(killed) == (None, -signal.SIGKILL)


def test_one_whose_maker_was_killed_goes_on_and_its_end_is_noticed(nursery: Nursery) -> None:
    async def orphaned() -> tuple[str, int | None, int]:
        process = nursery.fork()
        await process.begun()
        nursery._popen.kill()
        nursery._popen.wait()
        said = await asked(process, "'still here'")
        alive = process.returncode
        return said, alive, await ended(process)

    assert anyio.run(orphaned) == ("still here", None, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("begun", "told"),
    [
        (
            "import threading; threading.Thread(target=__import__('time').sleep, args=(60,), name='t', daemon=True).start()",
            "t;",
        ),
        (
            "held = os.open('/dev/null', 0); import deployments.standby; deployments.standby.DEVICES = ('/dev/null',)",
            "/dev/null;",
        ),
    ],
    ids=["a thread", "a device"],
)
def test_nothing_is_forked_beside_what_a_fork_would_lose_and_each_run_gets_a_process_of_its_own(
    begun: str, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", f"import os\n{begun}\n{TOLD}"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    async def prepared() -> tuple[bool, bool]:
        standby = Standby()
        await standby.prepare()
        assert standby._nursery
        await anyio.to_thread.run_sync(standby._nursery._popen.wait, 60)
        monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", "input()"])
        await standby.prepare()
        forked = isinstance(standby._waiting, Forked)
        await standby.close()
        return standby._nursery.refused, forked

    assert anyio.run(prepared) == (True, False)
    assert told in capfd.readouterr().err


class DiesAtOnce(Nursery):
    """One that is dead before it is asked: killed, or out of memory."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._popen.kill()
        self._popen.wait()


def test_where_the_one_that_forks_dies_at_once_the_worker_goes_on_with_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "Nursery", DiesAtOnce)
    monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", "input()"])

    async def prepared() -> bool:
        standby = Standby()
        await standby.prepare()
        waiting = standby._waiting
        await standby.close()
        return waiting is not None and not isinstance(waiting, Forked)

    assert anyio.run(prepared)


def test_what_comes_later_is_imported_when_the_first_is_there() -> None:
    later = TOLD.replace("dup(0))", "dup(0)), ['this']").replace(
        "for line", "print('this' in sys.modules, flush=True)\n    for line"
    )

    async def two() -> list[bool]:
        made = Nursery([sys.executable, "-c", later], {**os.environ, "PYTHONPATH": str(ROOT)})
        both = [made.fork(), made.fork()]
        said = [await asked(one, "0") for one in both]
        for one in both:
            await one.aclose()
        made.close()
        return ["True" in one.splitlines()[0] for one in said]

    assert anyio.run(two) == [False, True]


def test_without_a_maker_there_is_no_process_and_that_is_said(nursery: Nursery) -> None:
    nursery._popen.kill()
    nursery._popen.wait()

    async def none() -> str:
        try:
            await nursery.fork().begun()
        except NotForked as error:
            return str(error)
        return "forked"

    assert not nursery.lives and "nobody" in anyio.run(none) or "has ended" in anyio.run(none)


def test_the_maker_goes_when_its_worker_has_died_and_what_it_made_goes_on(tmp_path: Path) -> None:
    worker = f"""
import os, sys, anyio
from deployments.forked import Nursery
async def main():
    nursery = Nursery([sys.executable, "-c", {TOLD!r}], dict(os.environ))
    process = nursery.fork()
    await process.begun()
    await process.stdin.send(b"__import__('time').sleep(2) or open({str(tmp_path / "made")!r}, 'w').close()\\n")
    print(nursery._popen.pid, flush=True)
    os.kill(os.getpid(), 9)
anyio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", worker], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "made").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (tmp_path / "made").exists(), done.stderr
    status = Path(f"/proc/{done.stdout.strip()}/status")
    assert not status.exists() or "Z (zombie)" in status.read_text()


def test_what_it_forks_becomes_the_engine_in_the_environment_and_folder_of_its_run(home: Home, tmp_path: Path) -> None:
    """Twice, from one that imported Prefect once."""
    nursery = Nursery([sys.executable, "-P", "-m", "deployments.standby", "--fork", "json"], child_environment(home))
    told = {"environment": {**child_environment(home), "PREFECT__FLOW_RUN_ID": "no id"}, "folder": str(tmp_path)}

    async def engine() -> tuple[str, int]:
        process = nursery.fork()
        await process.begun()
        await process.stdin.send(json.dumps(told).encode() + b"\n")
        said = b""
        with anyio.fail_after(120):
            while True:
                try:
                    said += await process.stderr.receive()
                except anyio.EndOfStream:
                    break
        return said.decode(), await ended(process)

    try:
        for _ in range(2):
            said, code = anyio.run(engine)
            assert "Invalid flow run id" in said and "RuntimeWarning" not in said and code == 1
    finally:
        nursery.close()
