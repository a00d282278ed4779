"""torch works with the number of threads that is fastest on this machine, the same at every start."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from charengine import threads
from charengine.embedded.build.family import TINY, build_unet
from charengine.environment import Home
from charengine.threads import fastest, settle_threads, training_round


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
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert fastest(2, work) in (1, 2)
    assert torch.equal(torch.rand(4), expected)


def test_the_number_is_found_once_and_kept_for_other_threads_and_later_starts(two_threads, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(threads, "fastest", lambda cores, _: tried.append(cores) or 1)
    for _ in range(2):
        torch.set_num_threads(2)
        settle_threads(Model(), Home(tmp_path))
        seen = []
        worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))  # noqa: B023 - joined below
        worker.start()
        worker.join()
        assert seen == [1]
    assert tried == [2]


def test_another_processor_or_other_cores_are_tried_again(two_threads, tmp_path, monkeypatch):
    home, tried = Home(tmp_path), []
    monkeypatch.setattr(threads, "fastest", lambda cores, _: tried.append(cores) or 1)
    settle_threads(Model(), home)
    file = tmp_path / "threads.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor": "another"}))
    torch.set_num_threads(2)
    settle_threads(Model(), home)
    file.write_text("not JSON")
    torch.set_num_threads(2)
    settle_threads(Model(), home)
    assert tried == [2, 2, 2]


def test_who_names_a_number_of_threads_or_has_a_gpu_gets_no_trial(two_threads, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "fastest", lambda cores, _: pytest.fail("tried"))
    settle_threads(Model("cuda"), Home(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    settle_threads(Model(), Home(tmp_path))
    assert torch.get_num_threads() == 2
    assert not list(tmp_path.iterdir())
