"""torch works with the number of threads that is fastest on this machine, the same at every start."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from charengine.embedded.making.family import TINY, build_unet
from charengine.machine import threads
from charengine.machine.home import Home
from charengine.machine.threads import fastest, fastest_threads, release_team, training_round


class Model:
    """A diffusion model that says where it is, and has a U-Net of the embedded family's kind."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)

    def unet(self):
        return build_unet(TINY)


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ({8: 1.0, 4: 1.2, 1: 3.0}, 8),
        ({8: 1.0, 4: 0.95, 1: 3.0}, 8),  # no clear gain: all cores
        ({8: 1.0, 4: 0.8, 1: 3.0}, 4),
        ({2: 1.8, 1: 1.1}, 1),  # the machine of the lab notes
    ],
)
def test_fewer_threads_are_taken_only_where_they_are_clearly_faster(times, wanted):
    assert fastest(max(times), times.__getitem__) == wanted


def test_the_trial_moves_nobodys_random_numbers(two_threads):
    model = Model()
    work = training_round(model)
    tried = []

    def timed(count):
        assert work(count) > 0
        assert torch.get_num_threads() == count
        tried.append(count)
        return {2: 1.8, 1: 1.1}[count]

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert fastest(2, timed) == 1
    assert tried[:4] == [2, 1, 2, 1] and len(tried) >= 6
    assert torch.equal(torch.rand(4), expected)


def chosen(home, model=None):
    """The threads another thread works with meanwhile, and those of this one afterwards."""
    seen = []
    with fastest_threads(model or Model(), Home(home)):
        release_team()
        worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        worker.start()
        worker.join()
    return seen[0], torch.get_num_threads()


def test_the_number_is_found_once_and_kept_for_later_starts_and_given_up_afterwards(two_threads, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(threads, "fastest", lambda cores, _: tried.append(cores) or 1)
    assert chosen(tmp_path) == (1, 2)
    assert chosen(tmp_path) == (1, 2)
    assert tried == [2]


def test_another_processor_or_a_broken_file_is_tried_again(two_threads, tmp_path, monkeypatch):
    tried, file = [], tmp_path / "threads.json"
    monkeypatch.setattr(threads, "fastest", lambda cores, _: tried.append(cores) or 1)
    chosen(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor": "another"}))
    chosen(tmp_path)
    file.write_text("not JSON")
    chosen(tmp_path)
    assert tried == [2, 2, 2]


def test_who_names_a_number_of_threads_or_has_a_gpu_gets_no_trial(two_threads, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "fastest", lambda cores, _: pytest.fail("tried"))
    assert chosen(tmp_path, Model("cuda")) == (2, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert chosen(tmp_path) == (2, 2)
    assert not list(tmp_path.iterdir())
