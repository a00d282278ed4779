"""A process is known among all machines' and all times'."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from charengine.machine.processes import has_ended, this_process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc when a process began")
def test_another_process_with_a_dead_ones_number_is_not_that_one() -> None:
    mine = this_process()
    assert not has_ended(mine)
    assert has_ended(f"{mine.rpartition('_')[0]}_1")


def test_of_a_process_of_another_machine_nobody_here_knows_and_one_without_its_time_is_known_by_its_number() -> None:
    assert not has_ended("another-machine:1_1")
    assert not has_ended(f"{platform.node()}:{os.getpid()}")
