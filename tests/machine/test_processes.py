"""A process is known among all machines' and all times'."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from pathlib import Path

import pytest

from charengine.machine.processes import any_free_port, end, has_ended, spawn, this_process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc when a process began")
def test_another_process_with_a_dead_ones_number_is_not_that_one() -> None:
    mine = this_process()
    assert not has_ended(mine)
    assert has_ended(f"{mine.rpartition('_')[0]}_1")


def test_of_a_process_of_another_machine_nobody_here_knows_and_one_without_its_time_is_known_by_its_number() -> None:
    assert not has_ended("another-machine:1_1")
    assert not has_ended(f"{platform.node()}:{os.getpid()}")


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "log").open("wb") as log:
        port = any_free_port()
        thread = threading.Thread(target=lambda: started.append(spawn(["http.server", port], log, os.environ)))
        thread.start()
        thread.join()
    [child] = started
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1)
    finally:
        end(child)


def test_a_child_that_cannot_be_started_from_a_thread_says_so_there(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def start() -> None:
        try:
            with (tmp_path / "log").open("wb") as log:
                spawn(["x\0y"], log, os.environ)
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(failed) == 1
