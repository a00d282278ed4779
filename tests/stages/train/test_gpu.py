"""What can only be checked on a CUDA device: graphs, kernels, determinism, the memory cap."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from tiny_sdxl import FakeDiffusion
from trainings import stop_after, train

from charengine.errors import OutOfBudget
from charengine.models.kernels import _triton_works, geglu, geglu_backward
from charengine.stages.train.loop import TrainingStopped
from charengine.stages.train.optimizers import PACKAGES
from charengine.stages.train.setup import Setup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def cuda():
    return FakeDiffusion(torch.bfloat16, "cuda")


def test_triton_is_used_where_it_is_installed_and_can_compile():
    installed = importlib.util.find_spec("triton") is not None and shutil.which("cc") is not None
    assert _triton_works(torch.device("cuda", torch.cuda.current_device())) == installed


def test_the_fused_geglu_is_torchs():
    projected = torch.randn(100, 2 * 320, device="cuda", requires_grad=True)
    grad = torch.randn(100, 320, device="cuda")
    left, gate = projected.double().chunk(2, -1)
    wanted = left * torch.nn.functional.gelu(gate)
    wanted.backward(grad.double())
    change, again = geglu_backward(grad, projected.detach())
    assert torch.allclose(geglu(projected.detach()).double(), wanted, atol=1e-6)
    assert torch.allclose(again.double(), wanted, atol=1e-6)
    assert torch.allclose(change, projected.grad, atol=1e-5)


def test_a_captured_step_is_the_eager_step(store, tmp_path):
    graph = train(store, tmp_path / "graph", diffusion=cuda(), deterministic=True)
    eager = train(store, tmp_path / "eager", diffusion=cuda(), deterministic=True, cuda_graph="off")
    assert graph.plan["graph"]
    assert not eager.plan["graph"]
    assert [point.loss for point in graph.validation] == pytest.approx([p.loss for p in eager.validation], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "adamw8bit", "prodigy"])
def test_resumed_is_uninterrupted_bit_for_bit_with_deterministic_kernels(store, tmp_path, optimizer):
    if optimizer in PACKAGES:
        pytest.importorskip({"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}[optimizer])
    whole = train(store, tmp_path / "whole", diffusion=cuda(), deterministic=True, optimizer=optimizer)
    with pytest.raises(TrainingStopped):
        train(
            store,
            tmp_path / "parts",
            diffusion=cuda(),
            deterministic=True,
            optimizer=optimizer,
            should_stop=stop_after(5),
        )
    parts = train(store, tmp_path / "parts", diffusion=cuda(), deterministic=True, optimizer=optimizer)
    assert [c.adapter for c in parts.checkpoints] == [c.adapter for c in whole.checkpoints]


def test_a_budget_too_small_is_refused_and_the_memory_given_back(store, tmp_path):
    cap = torch.cuda.get_per_process_memory_fraction()
    with pytest.raises(OutOfBudget, match="train.budget_gib=0.51 is too small") as error:
        train(store, tmp_path, diffusion=cuda(), budget_gib=0.51)
    smallest = error.value.smallest_gib
    assert smallest is None or 0.5 < smallest < 2
    assert torch.cuda.get_per_process_memory_fraction() == cap
    assert train(store, tmp_path / "again", diffusion=cuda(), budget_gib=3).plan["peak_gib"] < 3


def test_the_next_training_tries_the_plan_that_fitted_and_no_other(store, tmp_path, monkeypatch):
    tried, possible, plans = [], [], tmp_path / "home" / "plans.json"
    once, choose = Setup._try, Setup._possible
    monkeypatch.setattr(Setup, "_try", lambda self, plan: tried.append(plan) or once(self, plan))
    monkeypatch.setattr(Setup, "_possible", lambda self, among: possible.append(1) or choose(self, among))
    first = train(store, tmp_path / "first", diffusion=cuda(), plans=plans)
    assert plans.exists() and possible == [1]
    tried.clear()
    second = train(store, tmp_path / "second", diffusion=cuda(), plans=plans, learning_rate=1e-4)
    assert len(tried) == 1 and possible == [1]
    assert {**second.plan, "peak_gib": 0} == {**first.plan, "peak_gib": 0}
    train(store, tmp_path / "third", diffusion=cuda(), plans=plans, budget_gib=9)
    assert possible == [1, 1], "another budget is another plan"


def test_a_float8_base_trains_in_segments_that_grow(store, tmp_path):
    record = train(store, tmp_path, diffusion=cuda(), fp8_base=True, rank=2, conv_rank=2)
    assert record.plan["fp8_base"]
    assert record.base_validation.loss > record.validation[-1].loss
    tensor = torch.empty(64 * 2**20, device="cuda")
    segments = [
        s for s in torch.cuda.memory_snapshot() if s["address"] <= tensor.data_ptr() < s["address"] + s["total_size"]
    ]
    assert [segment["is_expandable"] for segment in segments] == [True]
