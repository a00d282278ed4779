"""torch works with a number of threads that follows from the machine, never from a timing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from charengine.machine.threads import release_team, usual_threads, working_threads


@pytest.fixture
def eight_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def test_the_embedded_family_has_two_threads_wherever_there_are_two_cores(eight_threads: None) -> None:
    assert usual_threads("embedded") == 2
    torch.set_num_threads(1)
    assert usual_threads("embedded") == 1


def test_another_family_has_all_that_torch_would_take(eight_threads: None) -> None:
    assert usual_threads("sdxl") == 8


def test_who_names_a_number_of_threads_gets_it(eight_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert usual_threads("embedded") == 8


def test_threads_started_meanwhile_work_with_the_number_and_it_is_given_up_afterwards(eight_threads: None) -> None:
    seen = []
    with working_threads(2):
        release_team()
        worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        worker.start()
        worker.join()
    assert (seen, torch.get_num_threads()) == ([2], 8)
