"""A plan that fitted is the first that is tried the next time, and never more than that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_plan import squeeze

from charengine.config import TrainSettings
from charengine.stages.train import remembered
from charengine.stages.train.plan import Plan
from charengine.stages.train.remembered import WITHOUT_MEMORY, PlanMemory, plan_key

CUDA = torch.device("cuda")
SMALL = Plan(micro_batch=1, checkpointing="selective", recomputed=0.5, budget_gib=8.0)
MODEL = {"weights": 10, "types": ["torch.bfloat16"]}


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, and a card of which 8 GiB are free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    return tmp_path / "home" / "plans.json"


def test_what_fitted_is_found_again_if_it_is_still_possible(memory: Path) -> None:
    kept = PlanMemory(memory, "key")
    kept.keep(Plan(**{**SMALL.facts(), "peak_gib": 6.1}), CUDA)
    assert kept.find([Plan(budget_gib=8.0), SMALL]) == SMALL
    assert kept.find([Plan(budget_gib=8.0)]) is None
    assert PlanMemory(memory, "another").find([SMALL]) is None
    assert PlanMemory(None, "key").find([SMALL]) is None


def test_a_crowded_card_teaches_nothing(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 2**30, 80 * 2**30))
    PlanMemory(memory, "key").keep(SMALL, CUDA)
    assert not memory.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": 3}', '{"key": {"precision": "bf16", "colour": 1}}'])
def test_a_damaged_memory_is_none(memory: Path, content: str) -> None:
    memory.parent.mkdir()
    memory.write_text(content)
    kept = PlanMemory(memory, "key")
    assert kept.find([SMALL]) is None
    kept.keep(SMALL, CUDA)
    assert kept.find([SMALL]) == SMALL


def test_no_more_than_so_many_are_remembered(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "PLANS", 3)
    for number in range(5):
        PlanMemory(memory, str(number)).keep(SMALL, CUDA)
    found = [PlanMemory(memory, str(number)).find([SMALL]) for number in range(5)]
    assert found[-1] == SMALL and sum(plan is not None for plan in found) == 3


def test_the_key_knows_settings_that_memory_depends_on_and_no_others() -> None:
    def key(settings: TrainSettings, shapes: object = ((0, 3),), model: dict[str, object] = MODEL) -> str:
        return plan_key(settings, shapes, model, torch.device("cpu"))

    plain = key(TrainSettings())
    assert key(TrainSettings(steps=7, learning_rate=0.5, checkpoints=2)) == plain
    for changes in (
        {"rank": 9},
        {"budget_gib": 6},
        {"optimizer": "adamw"},
        {"masked_loss": 0.5},
        {"distill_size": 512},
    ):
        assert key(TrainSettings(**changes)) != plain, changes
    assert key(TrainSettings(), ((0, 2),)) != plain
    assert key(TrainSettings(), model=MODEL | {"weights": 11}) != plain
    assert set(TrainSettings.model_fields) >= WITHOUT_MEMORY


def test_the_remembered_plan_is_tried_first_and_all_others_where_it_does_not_fit(
    store, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlanMemory, "keep", lambda self, plan, device: kept.append(plan))
    kept: list[Plan] = []
    monkeypatch.setattr(PlanMemory, "find", lambda self, plans: SMALL)
    setup = squeeze(store, monkeypatch, lambda plan: plan.micro_batch == 1)
    assert setup.tried == [SMALL] and setup.plan == kept[-1] == SMALL
    setup = squeeze(store, monkeypatch, lambda plan: plan.checkpointing == "full" and plan.micro_batch == 1)
    assert setup.tried[0] == SMALL and len(setup.tried) == 7
    assert (setup.plan.checkpointing, setup.plan.micro_batch) == ("full", 1)
    assert kept[-1] == setup.plan
