"""Running a stage, whoever calls: kept results, one process at a time, only what is declared, memory, stopping."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stage_samples import Model, counted

from charengine.config import Character, TrainSettings
from charengine.errors import BadInput, OutOfBudget
from charengine.machine.home import Home
from charengine.machine.locks import single_flight
from charengine.profiles.loading import load_profile
from charengine.records import AdapterRecord, CheckpointRecord, DatasetRecord, Ref, ReportRecord
from charengine.run.keys import stage_recipe
from charengine.run.running import key_of, peak_rss_gib, run
from charengine.run.workspace import Workspace
from charengine.stage import Given, NotDeclared, Stage
from charengine.stages.train.stage import smaller_plan
from charengine.tracking.protocol import NullTracker

GRISHA = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # no trial of threads: there is no U-Net to try them on
    return workspace_in(Home(tmp_path / "home"))


def workspace_in(home: Home, *overrides: str) -> Workspace:
    made = Workspace(GRISHA, load_profile("embedded", list(overrides)), home)
    made.__dict__["models"] = SimpleNamespace(
        **{name: Model(name) for name in ("editor", "captioner", "diffusion", "embedder")}
    )
    return made


def test_what_was_made_is_taken_the_next_time_and_says_so(workspace: Workspace) -> None:
    stage, calls = counted()
    assert run(stage, workspace) == run(stage, workspace)
    assert len(calls) == 1
    assert [(fact.stage, fact.cached) for fact in workspace.facts] == [("crop", False), ("crop", True)]
    assert workspace.facts[0].key == key_of(stage, workspace)


def test_another_input_is_other_work(workspace: Workspace, tmp_path: Path) -> None:
    stage, calls = counted()
    for content in (b"a", b"b", b"a"):
        (tmp_path / "sheet.png").write_bytes(content)
        run(stage, workspace, tmp_path / "sheet.png")
    assert [fact.cached for fact in workspace.facts] == [False, False, True]
    assert len(calls) == 2


def test_refresh_makes_it_again(workspace: Workspace) -> None:
    stage, calls = counted()
    run(stage, workspace)
    workspace.refresh = frozenset({"crop"})
    run(stage, workspace)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["gone", "changed", "result unreadable"])
def test_a_kept_result_that_is_not_whole_is_made_again(workspace: Workspace, damage: str) -> None:
    stage, calls = counted()
    record = run(stage, workspace)
    blob = workspace.home.store / "sha256" / record.html.sha256[:2] / record.html.sha256
    if damage == "gone":
        blob.unlink()
    elif damage == "changed":
        blob.write_bytes(b"gape")  # as long as before
    else:
        (workspace.home.store / "results" / f"{key_of(stage, workspace)}.json").write_text("{}")
    assert run(stage, workspace) == record
    assert workspace.store.get(record.html) == b"page"
    assert len(calls) == 2


def test_a_failure_is_never_kept(workspace: Workspace) -> None:
    stage, calls = counted([BadInput("x")])
    with pytest.raises(BadInput):
        run(stage, workspace)
    run(stage, workspace)
    assert len(calls) == 2


def test_of_two_runs_at_once_one_works_and_the_other_takes_its_result(workspace: Workspace) -> None:
    calls: list[float] = []

    def slow(given: Given) -> ReportRecord:
        calls.append(time.monotonic())
        time.sleep(0.3)
        return ReportRecord(html=given.store.put(b"page", "page.html"))

    stage = Stage(name="crop", version=1, makes=ReportRecord, work=slow)
    results: list[ReportRecord] = []
    both = workspace, workspace_in(workspace.home)  # as two processes have it: the home is all they share
    threads = [threading.Thread(target=lambda one: results.append(run(stage, one)), args=(one,)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert results[0] == results[1]
    assert sorted(fact.cached for one in both for fact in one.facts) == [False, True]


def test_a_lock_file_is_left_but_free(workspace: Workspace) -> None:
    stage, _ = counted()
    run(stage, workspace)
    with single_flight(workspace.home.locks / f"{key_of(stage, workspace)}.lock", "x") as waited:
        assert not waited


def test_work_can_read_what_its_stage_declares_and_nothing_else(workspace: Workspace) -> None:
    stage, calls = counted(character=("prompt",), models=("captioner",), settings="caption")
    run(stage, workspace)
    given = calls[0]
    assert given.character.prompt == "an orc woman"
    assert given.models.captioner.fingerprint == "captioner"
    assert given.settings == workspace.profile.caption
    for undeclared in (lambda: given.character.trigger, lambda: given.seed, lambda: given.models.editor):
        with pytest.raises(NotDeclared, match="crop reads"):
            undeclared()


def test_the_files_of_a_stage_say_what_it_read_so_that_another_stages_setting_changes_no_byte(tmp_path: Path) -> None:
    stage, calls = counted(character=("prompt",), models=("captioner",), settings="caption")
    changes = ((), ("sheet.steps=17", "sweep.seeds=3"), ("caption.max_tags=41",))
    places = [workspace_in(Home(tmp_path / str(number)), *change) for number, change in enumerate(changes)]
    keys = [key_of(stage, place) for place in places]
    for place in places:
        run(stage, place)
    assert keys[0] == keys[1] != keys[2]
    assert calls[0].recipe == calls[1].recipe != calls[2].recipe
    assert calls[0].recipe == stage_recipe(stage, GRISHA, places[0].profile, places[0].models)


def test_declared_models_are_freed_after_work_and_after_failure(workspace: Workspace) -> None:
    stage, _ = counted([BadInput("x")], models=("editor", "embedder"))
    with pytest.raises(BadInput):
        run(stage, workspace)
    run(stage, workspace)
    assert (workspace.models.editor.unloaded, workspace.models.embedder.unloaded) == (2, 2)  # type: ignore[attr-defined]
    assert workspace.models.captioner.unloaded == 0  # type: ignore[attr-defined]


def test_work_with_models_takes_the_gpu_and_work_without_does_not(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    from charengine.run import running

    slots: list[Any] = []
    monkeypatch.setattr(running, "gpu_slot", lambda locks, device: slots.append(device) or nullcontext())
    run(counted(gpu=True)[0], workspace)
    run(counted(version=2)[0], workspace)
    assert slots == [torch.device("cpu"), None]


def test_work_is_done_with_the_threads_that_its_family_works_with(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number makes other bytes; the caller's own is what it was afterwards."""
    from contextlib import contextmanager

    from charengine.run import running

    told: list[object] = []

    @contextmanager
    def threads(count: int) -> Iterator[None]:
        told.append(count)
        yield
        told.append("given back")

    monkeypatch.setattr(running, "usual_threads", {"embedded": 5}.__getitem__)
    monkeypatch.setattr(running, "working_threads", threads)

    def work(given: Given) -> ReportRecord:
        told.append("work")
        return page(given)

    run(Stage(name="crop", version=1, makes=ReportRecord, work=work), workspace)
    run(long_stage(work), workspace)
    assert told == [5, "work", "given back"] * 2


def test_the_run_of_long_work_is_found_again_by_its_key_and_has_its_settings(workspace: Workspace) -> None:
    opened: list[tuple[str, str, object, object]] = []

    class Parent(NullTracker):
        def child(self, name, *, key, params=None, tags=None):  # type: ignore[no-untyped-def]
            opened.append((name, key, params, tags))
            return self

    workspace._tracker = Parent()
    run(long_stage(page), workspace)
    [(name, key, params, tags)] = opened
    assert (name, key) == ("train", key_of(long_stage(page), workspace))
    assert params == workspace.profile.train.params("train") and tags == {"charengine.kind": "train"}


def test_what_a_run_has_made_or_taken_counts_as_used_now_so_that_it_is_not_cleared_away(workspace: Workspace) -> None:
    first, _ = counted()
    second, _ = counted(name="expand")
    places = [workspace.home.store / "results" / f"{key_of(stage, workspace)}.json" for stage in (first, second)]
    for stage in (first, second):
        run(stage, workspace)
    for place in places:
        os.utime(place, (1, 1))
    run(second, workspace)  # the first belongs to the same run
    assert all(place.stat().st_mtime > time.time() - 600 for place in places)
    os.utime(places[1], (1, 1))
    run(second, workspace_in(workspace.home))  # taken by a run that made nothing
    assert places[1].stat().st_mtime > time.time() - 600


def test_long_work_is_tracked_and_keeps_state_under_its_key(workspace: Workspace) -> None:
    seen: list[bool] = []

    def work(given: Given) -> ReportRecord:
        assert given.state is not None
        given.state.mkdir()
        seen.append(given.state.name == key_of(stage, workspace) and not given.should_stop())
        return ReportRecord(html=given.store.put(b"page", "page.html"))

    stage = Stage(name="train", version=1, makes=ReportRecord, work=work, settings="train", long=True)
    run(stage, workspace)
    assert seen == [True]
    assert list(workspace.home.state.iterdir()) == []


REF = Ref(sha256="0" * 64, size=1, media_type="x", name="x")


def adapter(given: Given) -> AdapterRecord:
    stored = given.store.put(b"adapter", "a.safetensors")
    return AdapterRecord(
        checkpoints=(CheckpointRecord(step=1, adapter=stored, loss=0.1),),
        steps=1,
        trigger="griqul",
        class_noun="orc",
        dataset_digest="d",
    )


def test_out_of_memory_gets_one_smaller_plan_that_is_told(workspace: Workspace) -> None:
    asked: list[tuple[str, TrainSettings]] = []
    recipes: list[dict[str, Any]] = []

    def short_of_memory(given: Given) -> AdapterRecord:
        assert given.state is not None
        asked.append((given.state.name, given.settings))
        recipes.append(given.recipe)
        if given.settings.checkpointing != "full":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return adapter(given)

    plan = workspace.profile.train.model_copy(update={"checkpointing": "full", "batch": 1})
    stage = Stage("train", 1, AdapterRecord, short_of_memory, settings="train", models=("diffusion",), long=True)
    stage = replace(stage, smaller=lambda settings: plan if settings != plan else None)
    made = run(stage, workspace)
    key = key_of(stage, workspace)
    assert [name for name, _ in asked] == [key, f"{key}-smaller"]  # the state of one plan is not the other's
    assert asked[1][1] == plan
    assert recipes[1].pop("went_on_with") == {"train": {"checkpointing": "full", "batch": 1}}
    assert recipes[1] == recipes[0]  # as it was asked for, and as the key says
    assert "batch=1" in made.warnings[0] and "checkpointing=full" in made.warnings[0]


def test_out_of_memory_with_the_smallest_plan_is_said(workspace: Workspace) -> None:
    def short_of_memory(given: Given) -> AdapterRecord:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stage = Stage(
        "train", 1, AdapterRecord, short_of_memory, settings="train", long=True, smaller=lambda settings: None
    )
    with pytest.raises(OutOfBudget, match="smallest plan"):
        run(stage, workspace)


def test_the_smaller_plan_keeps_the_samples_per_step() -> None:
    def dataset(extras: int) -> DatasetRecord:
        return SimpleNamespace(trained_extras=(None,) * extras)  # type: ignore[return-value]

    plan = smaller_plan(TrainSettings(batch=0, accumulate=2), dataset(0))
    assert plan is not None
    assert (plan.batch, plan.accumulate, plan.checkpointing) == (1, 6, "full")
    assert smaller_plan(plan, dataset(0)) is None
    more = smaller_plan(TrainSettings(batch=0, accumulate=2), dataset(2))
    assert more is not None and more.accumulate == 10
    assert plan.steps == TrainSettings().steps


def test_peak_memory_is_what_the_system_says() -> None:
    import psutil

    now = psutil.Process().memory_info().rss / 2**30
    peak = peak_rss_gib()
    assert peak is not None and now * 0.9 <= peak < now + 64


def long_stage(work: Any) -> Stage[ReportRecord]:
    return Stage(name="train", version=1, makes=ReportRecord, work=work, settings="train", long=True)


def page(given: Given) -> ReportRecord:
    return ReportRecord(html=given.store.put(b"page", "page.html"))


def test_a_stage_stopped_after_its_last_step_is_not_made_again(workspace: Workspace) -> None:
    calls: list[str] = []

    def work(given: Given) -> ReportRecord:
        calls.append(given.key)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            while not given.should_stop():
                time.sleep(0.01)
        return page(given)  # it was the last step: nothing is left to stop

    with pytest.raises(KeyboardInterrupt):
        run(long_stage(work), workspace)
    assert run(long_stage(work), workspace).html.name == "page.html"
    assert calls == [key_of(long_stage(work), workspace)]


@pytest.mark.parametrize("what", ["closing its MLflow run", "freeing its models"])
def test_what_fails_after_the_work_does_not_lose_its_result(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if what == "freeing its models":
        stage, calls = counted(models=("editor",))
        monkeypatch.setattr(workspace.models.editor, "unload", fails)
    else:
        calls = []
        stage = long_stage(lambda given: (calls.append(given), page(given))[1])
        monkeypatch.setattr("charengine.tracking.protocol.NullTracker.finish", fails)
    with pytest.raises(OSError, match="No space"):
        run(stage, workspace)
    monkeypatch.undo()
    run(stage, workspace)
    assert len(calls) == 1
    assert workspace.facts[-1].cached


def test_what_long_work_told_mlflow_is_on_the_disk_before_its_result_is_kept(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail in between: a result that is there is never made again, so what was told of it must be there too."""
    stage = long_stage(page)
    kept: list[bool] = []

    def sync(_: object) -> None:
        kept.append(workspace.store.result(key_of(stage, workspace), ReportRecord) is not None)

    monkeypatch.setattr("charengine.tracking.protocol.NullTracker.sync", sync)
    run(stage, workspace)
    assert kept == [False]
    assert workspace.store.result(key_of(stage, workspace), ReportRecord) is not None


def test_parts_of_unfinished_work_are_there_the_next_time_and_go_with_its_result(workspace: Workspace) -> None:
    seen: list[bool] = []

    def work(given: Given) -> ReportRecord:
        assert given.state is not None
        given.state.mkdir(exist_ok=True)
        seen.append(given.store.result(f"{given.key}/part", ReportRecord) is not None)
        given.store.put_result(f"{given.key}/part", page(given))
        if len(seen) == 1:
            raise BadInput("killed")
        return page(given)

    key = key_of(long_stage(work), workspace)
    with pytest.raises(BadInput):
        run(long_stage(work), workspace)
    run(long_stage(work), workspace)
    assert seen == [False, True]
    assert workspace.store.result(f"{key}/part", ReportRecord) is None

    # killed between keeping the result and forgetting its parts: the next run forgets them
    workspace.store.put_result(f"{key}/part", workspace.store.result(key, ReportRecord) or pytest.fail("no result"))
    (workspace.home.state / key).mkdir()
    run(long_stage(work), workspace)
    assert workspace.store.result(f"{key}/part", ReportRecord) is None
    assert list(workspace.home.state.iterdir()) == []

    workspace.store.put_result(f"{key}/part", workspace.store.result(key, ReportRecord) or pytest.fail("no result"))
    workspace.refresh = frozenset({"train"})
    run(long_stage(work), workspace)
    assert seen == [False, True, False]  # asked for anew: nothing of before is taken
