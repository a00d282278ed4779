"""The memory plan: what is tried, in which order, and what happens when nothing fits."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest
import torch
from tiny_sdxl import FakeDiffusion, make_dataset
from trainings import train

from charengine.config import TrainSettings
from charengine.errors import OutOfBudget
from charengine.stages.train import loop
from charengine.stages.train import setup as preparation
from charengine.stages.train.data import encode_dataset
from charengine.stages.train.plan import Plan, candidates, let_segments_grow, store_in_float8
from charengine.stages.train.setup import Setup, describe

CUDA = torch.device("cuda")


def data_of(store, sizes=((64, 128),) * 3):
    return encode_dataset(make_dataset(store, sizes), TrainSettings(), FakeDiffusion(), store)


def test_without_a_gpu_there_is_one_plan(store):
    (plan,) = candidates(TrainSettings(), data_of(store), 3, torch.device("cpu"))
    assert plan == Plan(precision="fp32", micro_batch=3, budget_gib=12.0)


def test_small_views_are_batched_before_they_are_taken_one_by_one(store):
    plans = candidates(TrainSettings(precision="bf16"), data_of(store), 3, CUDA)
    assert (plans[0].micro_batch, plans[0].checkpointing) == (3, "none")
    order = [plan.micro_batch for plan in plans]
    assert order.index(1) > order.index(3)
    assert plans[-1].micro_batch == 1
    assert all(plan.graph for plan in plans)


def test_no_graph_is_captured_on_rocm(store, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4.4")
    assert not any(plan.graph for plan in candidates(TrainSettings(precision="bf16"), data_of(store), 3, CUDA))


def test_a_training_asks_for_attention_by_its_own_steps(store, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "unplanned_attention", lambda steps: nullcontext(asked.append(steps)))
    train(store, tmp_path, steps=3)
    assert asked == [3]


def test_large_views_are_taken_one_by_one_before_everything_is_computed_again(store, monkeypatch):
    data = data_of(store)
    bucket = data.buckets[0]
    large = type(data)(**{**vars(data), "buckets": (type(bucket)(**{**vars(bucket), "width": 1024, "height": 1024}),)})
    plans = candidates(TrainSettings(precision="bf16"), large, 3, CUDA)
    single = plans.index(next(p for p in plans if p.micro_batch == 1 and p.checkpointing == "none"))
    assert single < plans.index(next(p for p in plans if p.micro_batch == 3 and p.checkpointing == "full"))


def test_settings_narrow_what_is_tried(store):
    settings = TrainSettings(precision="bf16", checkpointing="full", cuda_graph="off")
    plans = candidates(settings, data_of(store), 3, CUDA)
    assert {plan.checkpointing for plan in plans} == {"full"}
    assert not any(plan.graph for plan in plans)


class _Squeezed(Setup):
    """A setup on a device that holds only what `fits` says."""

    fits = staticmethod(lambda plan: False)
    tried: list[Plan]

    def _try(self, plan):
        self.__dict__.setdefault("tried", []).append(plan)
        if not self.fits(plan):
            try:
                raise torch.OutOfMemoryError("no memory")
            except torch.OutOfMemoryError as error:
                raise RuntimeError("capture failed") from error
        return super()._try(plan)


def squeeze(store, monkeypatch, fits, **changes):
    many = [
        Plan(micro_batch=size, checkpointing=mode, recomputed=share, budget_gib=8.0)
        for size in (3, 1)
        for mode, share in (("none", 0.0), ("selective", 0.5), ("full", 1.0))
    ]
    monkeypatch.setattr(preparation, "candidates", lambda *_: many)
    monkeypatch.setattr(preparation, "set_cap", lambda *_: None)
    monkeypatch.setattr(_Squeezed, "fits", staticmethod(fits))
    diffusion = FakeDiffusion()
    settings = TrainSettings(rank=4, conv_rank=2, budget_gib=8, **changes)
    return _Squeezed(diffusion, settings, data_of(store), 0, None, fresh=True)


def test_the_first_plan_that_fits_is_taken(store, monkeypatch):
    setup = squeeze(store, monkeypatch, lambda plan: plan.micro_batch == 1 and plan.checkpointing != "none")
    assert (setup.plan.micro_batch, setup.plan.checkpointing) == (1, "selective")
    assert setup.step.micro_batch == 1
    assert [plan.micro_batch for plan in setup.tried] == [3, 3, 3, 1, 1]


def test_when_nothing_fits_the_error_says_what_would(store, monkeypatch):
    attempts = iter([False] * 6 + [True])
    monkeypatch.setattr(Setup, "_try", lambda self, plan: (Plan(peak_gib=9.3), None, None))
    with pytest.raises(OutOfBudget, match=r"train.budget_gib=8 is too small: the smallest that fits is 9.3") as error:
        squeeze(store, monkeypatch, lambda plan: next(attempts))
    assert error.value.smallest_gib == 9.3
    assert "train.fp8_base=true" in str(error.value)


def test_errors_that_are_not_about_memory_are_not_hidden(store, monkeypatch):
    def broken(plan):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        squeeze(store, monkeypatch, broken)


def test_float8_storage_keeps_three_bits_of_every_weight():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32)
    before = layer.weight.detach().clone()
    store_in_float8([layer])
    back = layer.weight.float() * layer.weight_scale
    assert layer.weight.element_size() == 1
    assert ((back - before).abs() <= before.abs() * 2**-4 + before.abs().amax(1, keepdim=True) * 2**-9).all()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no growing segments")
def test_segments_grow_unless_the_user_chose_the_allocators_settings(monkeypatch):
    asked = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", asked.append, raising=False)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert let_segments_grow() and asked == ["expandable_segments:True"]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert not let_segments_grow() and len(asked) == 1


def test_an_allocator_that_cannot_grow_segments_is_left_as_it_is(monkeypatch, caplog):
    def refuse(_):
        raise RuntimeError("expandable_segments not supported")

    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", refuse, raising=False)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert not let_segments_grow() and "not supported" in caplog.text


def test_a_plan_that_cannot_fit_is_known_by_one_sample():
    assert Plan(micro_batch=3).least_activations(4.0) == 12.0
    assert Plan(micro_batch=3, checkpointing="selective", recomputed=0.5).least_activations(4.0) == pytest.approx(2.4)
    assert Plan(micro_batch=1, checkpointing="full", recomputed=1.0).least_activations(4.0) == pytest.approx(0.2)


def test_a_plan_is_said_in_words():
    plan = Plan("bf16", "selective", 0.15, 1, False, True, False, 12.0, 10.84)
    words = "bf16, micro-batch 1, checkpointing selective (15% of the transformer blocks), CUDA graph, 10.8 of 12 GiB"
    assert describe(plan) == words
