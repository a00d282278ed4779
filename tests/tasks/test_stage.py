"""What every stage task does on the outside: cache by key, verification, retries, one process at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow

from charengine.errors import BadInput, Interrupted, OutOfBudget, SheetRejected
from charengine.machine.home import Home
from charengine.records import ReportRecord, StageFact
from charengine.store import Store
from tasks.stage import run_stage, stage_task

pytestmark = pytest.mark.usefixtures("prefect")


class Bench:
    """As much of a workspace as a stage's outside needs."""

    def __init__(self, home: Home) -> None:
        self.home, self.store = home, Store(home.store)
        self.refresh: frozenset[str] = frozenset()
        self.slug = "aya"
        self.facts: list[StageFact] = []
        self.models = SimpleNamespace(diffusion=SimpleNamespace(device=SimpleNamespace(type="cpu")))

    def note(self, fact: StageFact) -> None:
        self.facts.append(fact)


@pytest.fixture
def bench(home: Home) -> Iterator[Bench]:
    yield Bench(home)


def counted(name: str, fail: list[Exception] | None = None) -> tuple[Any, list[str]]:
    """A stage that writes down each call, and first raises what it is given."""
    calls: list[str] = []

    @stage_task(name)
    def stage(key: str, workspace: Bench, text: str) -> ReportRecord:
        calls.append(key)
        if fail:
            raise fail.pop(0)
        return ReportRecord(html=workspace.store.put(text.encode(), f"{name}.html"))

    return stage.with_options(retry_delay_seconds=0), calls


def inside_a_flow(*arguments: Any) -> ReportRecord:
    return flow(lambda: run_stage(*arguments), name="under-test")()


def test_the_same_key_is_taken_from_the_cache_and_another_is_not(bench: Bench) -> None:
    stage, calls = counted("sheet")
    first = inside_a_flow(stage, "sheet-1", bench, "a")
    assert inside_a_flow(stage, "sheet-1", bench, "ignored: the key decides") == first
    assert inside_a_flow(stage, "sheet-2", bench, "b") != first
    assert calls == ["sheet-1", "sheet-2"]
    assert [fact.cached for fact in bench.facts] == [False, True, False]


def test_refresh_runs_a_stage_that_is_cached(bench: Bench) -> None:
    stage, calls = counted("sheet")
    inside_a_flow(stage, "sheet-1", bench, "a")
    bench.refresh = frozenset({"sheet"})
    inside_a_flow(stage, "sheet-1", bench, "a")
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_cached_result_whose_file_is_gone_or_changed_is_made_again(bench: Bench, damage: str) -> None:
    stage, calls = counted("sheet")
    record = inside_a_flow(stage, "sheet-1", bench, "a")
    blob = bench.home.store / "sha256" / record.html.sha256[:2] / record.html.sha256
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(b"b")
    assert inside_a_flow(stage, "sheet-1", bench, "a") == record
    assert bench.store.get(record.html) == b"a"
    assert len(calls) == 2


@pytest.mark.parametrize(
    "error",
    [BadInput("x"), SheetRejected("x"), OutOfBudget("x"), Interrupted("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_comes_again_is_not_tried_again(bench: Bench, error: Exception) -> None:
    stage, calls = counted("sheet", [error])
    with pytest.raises(type(error)):
        inside_a_flow(stage, "sheet-1", bench, "a")
    assert len(calls) == 1


def test_what_may_pass_is_tried_twice_more(bench: Bench) -> None:
    stage, calls = counted("sheet", [ConnectionError("lost"), OSError("lost")])
    inside_a_flow(stage, "sheet-1", bench, "a")
    assert len(calls) == 3


def test_a_failure_is_never_cached(bench: Bench) -> None:
    stage, calls = counted("sheet", [BadInput("x")])
    with pytest.raises(BadInput):
        inside_a_flow(stage, "sheet-1", bench, "a")
    assert inside_a_flow(stage, "sheet-1", bench, "a").html.size == 1
    assert len(calls) == 2


def test_of_two_at_once_one_works_and_the_other_takes_its_result(bench: Bench) -> None:
    calls: list[float] = []

    @stage_task("train")
    def slow(key: str, workspace: Bench) -> ReportRecord:
        calls.append(time.monotonic())
        time.sleep(0.5)
        return ReportRecord(html=workspace.store.put(b"adapter", "a.html"))

    results: list[ReportRecord] = []
    threads = [threading.Thread(target=lambda: results.append(inside_a_flow(slow, "train-1", bench))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert results[0] == results[1]
    assert sorted(fact.cached for fact in bench.facts) == [False, True]


def test_the_smaller_plan_keeps_the_samples_per_step() -> None:
    from charengine.config import TrainSettings
    from tasks.train import smaller_plan

    plan = smaller_plan(TrainSettings(batch=0, accumulate=2))
    assert (plan.batch, plan.accumulate, plan.checkpointing) == (1, 6, "full")
    assert smaller_plan(plan) == plan
    assert smaller_plan(TrainSettings(batch=0, accumulate=2), views=5).accumulate == 10
    assert plan.steps == TrainSettings().steps


def test_a_lock_file_is_left_but_free(bench: Bench, tmp_path: Path) -> None:
    from charengine.machine.locks import single_flight

    stage, _ = counted("sheet")
    inside_a_flow(stage, "sheet-1", bench, "a")
    with single_flight(bench.home.locks / "sheet-1.lock", "x") as waited:
        assert not waited


def test_out_of_memory_gets_one_smaller_plan_that_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from charengine.config import TrainSettings
    from charengine.records import AdapterRecord, CheckpointRecord, Ref
    from charengine.tracking.protocol import NullTracker
    from tasks import train

    asked: list[tuple[str, TrainSettings]] = []
    ref = Ref(sha256="0" * 64, size=1, media_type="x", name="x")
    record = AdapterRecord(
        checkpoints=(CheckpointRecord(step=1, adapter=ref, loss=0.1),),
        steps=1,
        trigger="ohwaya",
        class_noun="orc",
        dataset_digest="d",
        curve=ref,
    )

    def short_of_memory(key: str, workspace: Any, dataset: Any, settings: TrainSettings, *rest: Any) -> AdapterRecord:
        asked.append((key, settings))
        if settings.checkpointing != "full":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record

    monkeypatch.setattr(train, "_train", short_of_memory)
    workspace: Any = SimpleNamespace(
        profile=SimpleNamespace(train=TrainSettings()),
        models=SimpleNamespace(diffusion=SimpleNamespace(unload=lambda: None)),
    )
    dataset: Any = SimpleNamespace(trained_extras=())
    made = train._train_within_memory("train-1", workspace, dataset, NullTracker(), lambda: False)
    assert [key for key, _ in asked] == ["train-1", "train-1-smaller"]  # the state of one plan is not the other's
    assert asked[1][1] == train.smaller_plan(TrainSettings())
    assert "checkpointing=full, batch=1" in made.warnings[0]

    workspace.profile.train = train.smaller_plan(TrainSettings())
    monkeypatch.setattr(train, "_train", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(OutOfBudget, match="smallest plan"):
        train._train_within_memory("train-1", workspace, dataset, NullTracker(), lambda: False)
