"""Memory that a GPU copies from: what is copied there and back is what it was."""

from __future__ import annotations

import threading

import pytest
import torch

from charengine import host_memory
from charengine.host_memory import HostCopies, copied_to

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=needs_gpu)]


def tensors() -> list[torch.Tensor]:
    return [
        torch.arange(100_000).float(),
        torch.randn(3, 5).half(),
        torch.tensor(2.5),
        torch.zeros(0, 4),
        torch.randn(6, 7).t(),
        torch.nn.Parameter(torch.randn(4, 4).to(torch.bfloat16)),
        torch.tensor([True, False]),
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_copied_to_a_device_is_what_it_was(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "WAY_BYTES", 4096)  # pieces smaller than a tensor
    for tensor, there in zip(tensors(), copied_to(device, tensors()), strict=True):
        assert there.device.type == device.type and there.dtype == tensor.dtype and there.shape == tensor.shape
    for tensor, there in zip(given := tensors(), copied_to(device, given), strict=True):
        assert torch.equal(there.cpu(), tensor)


@pytest.mark.parametrize("device", DEVICES)
def test_copies_are_made_again_in_the_same_memory(device: torch.device) -> None:
    given = [tensor.to(device) for tensor in tensors()]
    copies = HostCopies(given)
    places = [copy.data_ptr() for copy in copies.copies]
    with torch.no_grad():
        given[0].add_(1)
    copies.copy(given)
    assert torch.equal(copies.copies[0], torch.arange(100_000).float() + 1)
    assert [copy.data_ptr() for copy in copies.copies] == places
    assert copies.fits(given)
    assert not copies.fits(given[:-1]) and not copies.fits([given[0].half(), *given[1:]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_made_on_a_thread_do_not_wait_for_what_a_gpu_is_asked_afterwards() -> None:
    made: list[HostCopies] = []
    given = [torch.randn(1000, 1000, device="cuda") for _ in range(50)]
    wanted = [tensor.cpu() for tensor in given]
    large = torch.randn(8192, 8192, device="cuda")
    thread = threading.Thread(target=lambda: made.append(HostCopies(given)))
    thread.start()
    ended = torch.cuda.Event()
    for _ in range(400):
        large @ large
    ended.record()
    thread.join()
    assert not ended.query(), "the copies waited for work that was asked for later"
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(made[0].copies, wanted, strict=True))
