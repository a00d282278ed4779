"""The pipeline over stages that give records at once: what each hands to the next, and what is said at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_samples import sample_run, told_apart, with_words

from charengine.config import TrainSettings
from charengine.machine.home import Home
from charengine.machine.known_runs import known_runs
from charengine.records import ReportRecord, RunRecord, RunResult, StageFact, SweepRecord, Verdict
from charengine.run.result import Written, run_result, seconds_of
from charengine.store import Store
from charengine.tracking.protocol import NullTracker
from flows import character as flow

AGAIN = (
    StageFact(stage="train", key="train-1", cached=True, seconds=0.5),
    StageFact(stage="sweep", key="sweep-1", cached=True, seconds=0.25),
    StageFact(stage="train", key="train-2", cached=False, seconds=20.0),
    StageFact(stage="sweep", key="sweep-2", cached=True, seconds=0.5),
)
FACTS = tuple(
    StageFact(stage=stage, key=f"{stage}-1", cached=cached, seconds=seconds)
    for stage, cached, seconds in (("sheet", True, 0.1234), ("crop", False, 0.5), ("train", False, 92.0))
)


@pytest.fixture
def run(store: Store) -> RunRecord:
    made = with_words(told_apart(sample_run(store)), store)
    sheet = made.sheet.model_copy(update={"warnings": ("pale", "shared")})
    training = made.training.model_copy(update={"warnings": ("shared", "slow")})
    return made.model_copy(update={"sheet": sheet, "training": training})


def made(
    run: RunRecord,
    store: Store,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    sweeps: Sequence[SweepRecord] = (),
    while_training: Callable[[], object] = lambda: None,
) -> tuple[RunResult, dict[str, Any]]:
    """The flow's result, and what each stage was handed."""
    handed: dict[str, Any] = {}
    swept, retrain = iter(sweeps or [run.sweep]), max(0, len(sweeps) - 1)
    character = SimpleNamespace(name="Zorga", prompt=run.prompt, seed=7)
    tracker = NullTracker()
    tracker.run_id = "mlflow-run"
    workspace: Any = SimpleNamespace(
        home=Home(out.parent / "home").create(),
        store=store,
        character=character,
        profile=SimpleNamespace(name="embedded", retrain=retrain, train=TrainSettings(steps=300)),
        config=run.config,
        facts=list(FACTS),
        tracker=tracker,
        key="run-1",
        keep_whole=lambda: handed.update(whole=(out / "result.json").exists()),
    )

    def with_training(settings: TrainSettings) -> Any:
        profile = SimpleNamespace(name="trained otherwise", retrain=retrain, train=settings)
        return SimpleNamespace(
            **{**vars(workspace), "profile": profile, "config": {**run.config, "steps": settings.steps}}
        )

    workspace.with_training = with_training
    page = ReportRecord(html=store.put(b"<html>", "report.html"))

    def stage(name: str, record: Any) -> Any:
        def give(_: Any, *inputs: Any) -> Any:
            handed[name] = inputs
            if name == "train_adapter":
                while_training()
            return next(swept) if name == "sweep_adapter" else record

        return give

    for name, record in (
        ("make_sheet", run.sheet),
        ("crop_views", run.dataset.views),
        ("expand_views", None),
        ("caption_views", (run.dataset, "caption-1")),
        ("train_adapter", run.training),
        ("sweep_adapter", run.sweep),
        ("register_pick", None),
        ("write_report", page),
        ("show_run", None),
    ):
        monkeypatch.setattr(flow, name, stage(name, record))
    return flow.make_character(workspace, out), handed


def test_each_stage_is_handed_the_records_of_those_before(
    run: RunRecord, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, handed = made(run, store, tmp_path / "out", monkeypatch)
    assert handed["crop_views"] == (run.sheet,)
    assert handed["expand_views"] == (run.dataset.views,)
    assert handed["caption_views"] == (run.dataset.views, (), tmp_path / "out")
    assert handed["train_adapter"] == (run.dataset,)
    assert handed["sweep_adapter"] == (run.training, run.dataset)
    assert handed["register_pick"] == (run.sweep, run.dataset)
    [record] = handed["write_report"]
    assert (record.sheet, record.dataset, record.training, record.sweep) == (
        run.sheet,
        run.dataset,
        run.training,
        run.sweep,
    )


@pytest.mark.parametrize("source", ["given", "drawn"])
def test_what_is_wrong_with_a_given_sheet_is_said_before_the_stages_after_it(
    run: RunRecord,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    source: str,
) -> None:
    views = run.dataset.views.model_copy(update={"warnings": ("all views are one picture",)})
    run = run.model_copy(
        update={
            "sheet": run.sheet.model_copy(update={"source": source}),
            "dataset": run.dataset.model_copy(update={"views": views}),
        }
    )
    monkeypatch.setattr(flow.making, "until_right", lambda *_: pytest.fail(f"trained after: {caplog.text}"))
    with pytest.raises(pytest.fail.Exception) as trained:
        made(run, store, tmp_path / "out", monkeypatch)
    assert ("all views are one picture" in str(trained.value)) == (source == "given")


def test_a_training_that_was_made_again_is_the_one_that_the_record_tells_of(
    run: RunRecord, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = [run.sweep.pick.metrics.model_copy(update={"score": score}) for score in (0.5, 0.6)]
    first, second = (
        run.sweep.model_copy(
            update={
                "pick": run.sweep.pick.model_copy(update={"metrics": own}),
                "verdict": Verdict(kind=kind, line=kind),
            }
        )
        for own, kind in zip(metrics, ("under", "right"), strict=True)
    )
    _, handed = made(run, store, tmp_path / "out", monkeypatch, sweeps=[first, second])
    record = RunRecord.model_validate_json((tmp_path / "out/run.json").read_bytes())
    assert (record.profile, record.config["steps"], record.sweep) == ("trained otherwise", 600, second)
    assert handed["register_pick"] == (second, run.dataset)
    assert any("trained 2 times" in warning for warning in record.warnings)


def test_a_stage_that_was_made_twice_took_both_times_and_is_unchanged_only_if_both_were(run: RunRecord) -> None:
    here = Path("x")
    result = run_result(run.model_copy(update={"stages": AGAIN}), Written(here, [], [], here, here, here))
    assert result.cached_stages == ("sweep",)
    assert result.seconds == seconds_of(AGAIN) == {"train": 20.5, "sweep": 0.75}
    assert seconds_of([fact for fact in AGAIN if not fact.cached]) == {"train": 20.0}


def test_the_record_is_the_character_as_made_with_every_warning_once(
    run: RunRecord, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = made(run, store, tmp_path / "out", monkeypatch)
    record = RunRecord.model_validate_json((tmp_path / "out/run.json").read_bytes())
    assert (record.name, record.prompt, record.seed, record.profile) == ("Zorga", run.prompt, 7, "embedded")
    assert (record.trigger, record.class_noun, record.mlflow_run_id) == ("zorgax", "orc", "mlflow-run")
    assert record.stages == FACTS
    assert record.warnings == ("pale", "shared", "the side figure touches the edge", "slow") == result.warnings


def named_by(result: RunResult) -> list[Path]:
    """Every file that a result says is there."""
    return [
        *map(Path, (result.sheet, *result.views, *result.captions)),
        *map(Path, (result.adapter, result.recommended_adapter, result.report)),
    ]


@pytest.mark.parametrize("gone", [".", "sheet.png", "views", "dataset", "views/front.png"])
def test_every_file_that_a_result_names_is_there_whatever_was_deleted_while_the_run_was_made(
    run: RunRecord,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gone: str,
) -> None:
    place = tmp_path / "out" / gone

    def delete() -> None:
        assert place.exists()
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    result, _ = made(run, store, tmp_path / "out", monkeypatch, while_training=delete)
    assert [path for path in named_by(result) if not path.exists()] == []
    assert "removed while the run was made, and written again" in caplog.text


def test_a_caption_edited_while_its_neighbour_was_deleted_stays_and_ends_no_run(
    run: RunRecord, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def meddle() -> None:
        front, side, *_ = sorted((tmp_path / "out").rglob("*.txt"))
        front.unlink()
        side.write_text("mine", encoding="utf-8")

    made(run, store, tmp_path / "out", monkeypatch, while_training=meddle)
    assert "mine" in [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*.txt")]
    assert "not written again: " in caplog.text


def test_a_run_is_kept_as_whole_once_its_result_is_written(
    run: RunRecord, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, handed = made(run, store, tmp_path / "out", monkeypatch)
    assert handed["whole"] is True
    (noted,) = known_runs(Home(tmp_path / "home"))
    assert "run-1" in noted.keys  # or `prune` would take it for one that nothing names


def test_the_result_names_each_file_and_number_by_its_own_name(
    run: RunRecord, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = (tmp_path / "out").resolve()
    result, _ = made(run, store, out, monkeypatch)
    subset = out / "dataset/10_zorgax orc"
    assert result.model_dump() == {
        "name": "Zorga",
        "trigger": "zorgax",
        "recommended_prompt": "zorgax orc, black boots, hook for a right hand",
        "traits": {"blue coat": 1.0, "black boots": 0.0, "hook for a right hand": 0.33},
        "sheet": out / "sheet.png",
        "views": (out / "views/front.png", out / "views/side.png", out / "views/back.png"),
        "captions": (subset / "front.txt", subset / "side.txt", subset / "back.txt"),
        "adapter": out / "adapters/zorgax.safetensors",
        "recommended_adapter": out / "adapters/zorgax_recommended.safetensors",
        "checkpoint_step": 200,
        "strength": 0.6,
        "report": out / "report.html",
        "mlflow_run_id": "mlflow-run",
        "prefect_flow_run_id": None,
        "cached_stages": ("sheet",),
        "warnings": ("pale", "shared", "the side figure touches the edge", "slow"),
        "seconds": {"sheet": 0.123, "crop": 0.5, "train": 92.0},
    }
    assert result.adapter.read_bytes() == store.get(run.sweep.adapter)
    assert result.recommended_adapter.read_bytes() == store.get(run.sweep.recommended_adapter)
    assert json.loads((out / "result.json").read_text())["checkpoint_step"] == 200
