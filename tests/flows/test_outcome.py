"""MLflow's run of a character holds each number under its own name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_samples import sample_run, told_apart

from charengine.records import RunRecord, StageFact
from charengine.store import Store
from charengine.tracking.protocol import NullTracker
from flows.character import _log_outcome


class Notebook(NullTracker):
    """Remembers metrics and tags."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}

    def log_metrics(self, metrics: Any, step: int) -> None:
        assert step == 0
        self.metrics |= metrics

    def set_tags(self, tags: Any) -> None:
        self.tags |= tags


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return told_apart(sample_run(Store(tmp_path)))


def logged(run: RunRecord) -> Notebook:
    notebook = Notebook()
    workspace: Any = SimpleNamespace(tracker=notebook)
    _log_outcome(workspace, run, Path("runs/zorga"))
    return notebook


def test_pick_base_model_and_full_strength_are_logged_each_with_its_own_numbers(run: RunRecord) -> None:
    metrics = logged(run).metrics
    assert {name: value for name, value in metrics.items() if not name.startswith("seconds/")} == {
        "pick/checkpoint_step": 200,
        "pick/strength": 0.6,
        "train/final_loss": 0.2 - 300 / 2500,
        "pick/identity": 0.21,
        "pick/adherence": 0.22,
        "pick/diversity": 0.23,
        "pick/copying": 0.24,
        "base/identity": 0.11,
        "base/adherence": 0.12,
        "base/diversity": 0.13,
        "base/copying": 0.14,
        "last_at_1/identity": 0.31,
        "last_at_1/adherence": 0.32,
        "last_at_1/diversity": 0.33,
        "last_at_1/copying": 0.34,
    }


def test_what_came_from_the_cache_has_no_time_and_is_named_in_a_tag(run: RunRecord) -> None:
    facts = [("sheet", True, 0.1), ("crop", True, 0.2), ("train", False, 92.0)]
    stages = tuple(StageFact(stage=stage, key="k", cached=cached, seconds=time) for stage, cached, time in facts)
    notebook = logged(run.model_copy(update={"stages": stages}))
    assert {name: value for name, value in notebook.metrics.items() if name.startswith("seconds/")} == {
        "seconds/train": 92.0
    }
    assert notebook.tags["cached_stages"] == "sheet, crop"


def test_the_runs_that_made_adapter_and_sweep_and_the_dataset_are_named(run: RunRecord) -> None:
    training = run.training.model_copy(update={"mlflow_run_id": "the-training"})
    sweep = run.sweep.model_copy(update={"mlflow_run_id": "the-sweep"})
    tags = logged(run.model_copy(update={"training": training, "sweep": sweep})).tags
    assert tags["charengine.train_run_id"] == "the-training"
    assert tags["charengine.sweep_run_id"] == "the-sweep"
    assert tags["dataset_digest"] == run.dataset.digest
    assert tags["out"] == "runs/zorga"
