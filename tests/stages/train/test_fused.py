"""Where the frozen weights of fused blocks lie: attention's are joined or moved, the feed-forward's stay."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_sdxl import FakeDiffusion, make_dataset

from charengine.config import TrainSettings
from charengine.stages.train import fused
from charengine.stages.train.data import encode_dataset
from charengine.stages.train.setup import Setup


@pytest.fixture
def left(monkeypatch) -> list[str]:
    """What was done with a GPU that is not there."""
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("given back"))
    return done


def layer(done: list[str], size: int) -> SimpleNamespace:
    """A layer whose weight says that it is on a GPU."""
    data = SimpleNamespace(nbytes=size, device="cuda", cpu=lambda: done.append("taken off") or "in host memory")
    return SimpleNamespace(weight=SimpleNamespace(is_cuda=True, data=data, device="cuda"))


def test_attention_is_moved_and_the_feed_forward_stays_where_it_was(store):
    settings = TrainSettings(rank=4, alpha=4.0, conv_rank=2, conv_alpha=2.0, precision="fp32")
    diffusion = FakeDiffusion()
    before = {name: p.data_ptr() for name, p in diffusion.unet().named_parameters()}
    values = {name: p.clone() for name, p in diffusion.unet().named_parameters()}
    setup = Setup(
        diffusion, settings, encode_dataset(make_dataset(store), settings, diffusion, store), 7, None, fresh=True
    )
    assert setup.fused
    attention = [name for name in before if ".attn" in name and name.endswith("weight") and "transformer" in name]
    after = {name.replace(".org_module.0", ""): p for name, p in diffusion.unet().named_parameters()}
    assert attention and all(after[name].data_ptr() != before[name] for name in attention)
    still = [name for name in before if ".ff.net" in name and name.endswith("weight")]
    assert still and all(after[name].data_ptr() == before[name] for name in still)
    assert all(torch.equal(after[name], values[name]) for name in values)


def test_old_weights_stay_beside_the_joined_ones_where_there_is_room(left, monkeypatch):
    monkeypatch.setattr(fused, "_room", lambda device: 30)
    layers = [layer(left, 10), layer(left, 20)]
    assert fused._set_aside(layers) == [one.weight.data for one in layers]
    assert left == []


def test_without_room_for_both_they_leave_the_gpu_till_they_are_joined(left, monkeypatch):
    monkeypatch.setattr(fused, "_room", lambda device: 29)
    layers = [layer(left, 10), layer(left, 20)]
    assert fused._set_aside(layers) == []
    assert left == ["taken off", "taken off", "given back"]
    assert [one.weight.data for one in layers] == ["in host memory"] * 2


def test_room_is_what_the_allocator_may_take_and_what_the_device_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    for free, room in ((1000, 40), (7, 7)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 100))
        assert fused._room(torch.device("cuda")) == room
