"""Locks die with their holder, and an interrupt waits for the step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from charengine.machine.interrupts import run_stoppable
from charengine.machine.locks import gpu_slot, if_free, single_flight

HOLD = "import sys, time; from charengine.machine.locks import single_flight\nwith single_flight(__import__('pathlib').Path(sys.argv[1]), 'x'):\n    print('held', flush=True); time.sleep(60)"


def test_a_killed_holder_gives_the_lock_back(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a.lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    threading.Timer(0.3, holder.kill).start()
    started = time.monotonic()
    with single_flight(tmp_path / "a.lock", "x") as waited:
        assert waited
    assert 0.2 < time.monotonic() - started < 10
    holder.communicate()


def test_a_free_lock_is_not_waited_for(tmp_path: Path) -> None:
    for _ in range(2):
        with single_flight(tmp_path / "deeper" / "a.lock", "x") as waited:
            assert not waited


@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_a_lock_that_was_never_held_is_held_only_where_it_may_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("CHARENGINE_LOCKS", kind)
    path = tmp_path / "locks" / "a.lock"
    with if_free(path) as first, if_free(path) as second:
        assert first and second and not path.parent.exists()
    with if_free(path, make=True) as first, if_free(path, make=True) as second:
        assert first and not second
    with if_free(path, make=True) as third:
        assert third


def test_the_cpu_needs_no_slot(tmp_path: Path) -> None:
    import torch

    with gpu_slot(tmp_path, torch.device("cpu")), gpu_slot(tmp_path, torch.device("cpu")):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_a_gpu_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    import torch

    with gpu_slot(tmp_path, torch.device("cuda")):
        [lock] = tmp_path.iterdir()
        assert lock.name.startswith("gpu-")


def test_work_goes_on_to_its_end_and_its_result_comes_back() -> None:
    assert run_stoppable(lambda should_stop: (should_stop(), 7)) == (False, 7)
    with pytest.raises(ValueError, match="mine"):
        run_stoppable(lambda should_stop: (_ for _ in ()).throw(ValueError("mine")).__next__())


def test_an_interrupt_lets_the_step_end_and_the_state_be_saved_before_it_goes_on() -> None:
    told: list[str] = []

    def work(should_stop: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not should_stop():  # type: ignore[operator]
            time.sleep(0.01)
        time.sleep(0.2)
        told.append("state saved")

    with pytest.raises(KeyboardInterrupt):
        run_stoppable(work)
    assert told == ["state saved"]
