"""A run that began while MLflow was away is told to it by the next run, whole and once."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from charengine.machine.home import Home
from charengine.tracking.journal import JOURNAL, JournalTracker, deliver, left_journals
from charengine.tracking.open_tracker import open_tracker
from charengine.tracking.protocol import Tracker
from charengine.writing import begun, is_running

AWAY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _mlflow_is_away(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def opened(home: Home, key: str) -> Tracker:
    return open_tracker(home, project="charengine", name="Mone", key=key, params={"a": 1}, tags={"character": "Mone"})


def make(tracker: Tracker) -> None:
    """What a run tells."""
    child = tracker.child("train", key="train-1", params={"rank": 4})
    for step in range(3):
        child.log_metrics({"train/loss": 1.0 - step / 10}, step)
    child.log_image(Image.new("RGB", (8, 8)), "front")
    child.log_checkpoint(b"adapter", 3, {"loss": 0.8})
    child.finish()
    tracker.set_tags({"cached_stages": "none"})
    tracker.log_metrics({"pick/strength": 0.6}, 0)
    tracker.log_bytes(b"words", "report/report.html")
    tracker.finish()


def test_everything_waits_and_is_told_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    away = opened(home, "run-1")
    assert isinstance(away, JournalTracker)
    make(away)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for _ in range(2):  # the second finds nothing more to tell
        again = opened(home, "run-1")
        assert again.run_id and not list((home.mlflow / JOURNAL).glob("*"))
        again.finish()
    client = MlflowClient(f"sqlite:///{home.mlflow / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("charengine")
    assert experiment
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"Mone", "Mone train"} and {run.info.status for run in runs.values()} == {"FINISHED"}
    train, whole = runs["Mone train"], runs["Mone"]
    assert train.data.tags["mlflow.parentRunId"] == whole.info.run_id == again.run_id
    history = client.get_metric_history(train.info.run_id, "train/loss")
    assert [(point.step, round(point.value, 1)) for point in history] == [(0, 1.0), (1, 0.9), (2, 0.8)]
    assert train.data.params["rank"] == "4" and "charengine.checkpoint.3" in train.data.tags
    assert whole.data.metrics["pick/strength"] == 0.6 and whole.data.tags["cached_stages"] == "none"


class _Silent:
    """MLflow that takes runs and goes away again."""

    def __init__(self, away: bool) -> None:
        self.away, self.told = away, []

    def alone(self, keys: set[str]) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def begin(self, name, key, parent, params, tags):
        self.told.append(key)
        return self

    def metrics(self, run, values, step, when):
        self.told.append(step)

    def close(self, run, status):
        self.told.append(status)

    def is_away(self) -> bool:
        return self.away


def test_a_journal_stays_while_its_process_works_and_while_mlflow_is_away(home: Home) -> None:
    folder: Path = home.mlflow / JOURNAL
    opened(home, "run-1").log_metrics({"x": 1}, 5)
    assert deliver(folder, _Silent(away=False), lambda pid: pid == os.getpid()) == 0
    assert deliver(folder, _Silent(away=True), lambda pid: False) == 0 and len(list(folder.glob("*.jsonl"))) == 1
    (journal,) = folder.glob("*.jsonl")
    journal.write_text(journal.read_text() + '{"run": "run-1", "what": "met')  # killed while it wrote
    receiver = _Silent(away=False)
    assert deliver(folder, receiver, lambda pid: False) == 1 and not list(folder.glob("*"))
    assert receiver.told == ["run-1", 5, "KILLED"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc when a process began")
def test_another_process_that_has_a_dead_ones_number_keeps_no_journal_back(home: Home) -> None:
    """A machine or container that is started again gives the same numbers within minutes."""
    folder: Path = home.mlflow / JOURNAL
    opened(home, "run-1").log_metrics({"x": 1}, 5)
    opened(home, "run-2").log_bytes(b"page", "report.html")
    there = sorted(folder.glob("*.jsonl"))
    assert len(there) == 2 and deliver(folder, _Silent(away=False), is_running) == 0
    for path in there:
        for kept in (path, path.with_suffix("")):
            if kept.exists():
                kept.rename(kept.with_name(kept.name.replace(f"_{begun(os.getpid())}-", "_1-")))
    for path in folder.glob("*.jsonl"):
        if path.with_suffix("").exists():
            path.unlink()  # a folder whose journal went a moment before its process was killed
    assert deliver(folder, _Silent(away=False), is_running) == 1 and not list(folder.glob("*"))


def test_what_another_program_left_among_journals_keeps_none_back_and_stays(home: Home) -> None:
    folder: Path = home.mlflow / JOURNAL
    opened(home, "run-1").log_metrics({"x": 1}, 5)
    (journal,) = folder.glob("*.jsonl")
    beside = journal.with_suffix("")
    beside.mkdir()
    (beside / ("0" * 32)).write_bytes(b"no picture")
    lines = [
        {"run": "x", "what": "open"},
        {"run": "x", "what": "open", "name": "x", "params": {}, "tags": {}},
        {"run": "x", "what": "open", "name": "x", "params": {}, "tags": {}, "parent": "x"},
        {"run": [], "what": 5},
        {"run": "run-1", "what": "metrics", "values": {"x": "1"}, "step": 6, "when": 1},
        {"run": "run-1", "what": "metrics", "values": 5, "step": 6, "when": 1},
        {"run": "run-1", "what": "image", "file": "0" * 32, "name": "front", "step": None},
        {"run": "run-1", "what": "bytes", "file": "../../../keys", "name": "keys"},
        {"run": "run-1", "what": "finish", "status": "DONE"},
        {"run": "run-1", "what": "metrics", "values": {"x": 2}, "step": 7, "when": 1},
    ]
    with journal.open("a") as file:
        file.write("\n".join([*map(json.dumps, lines), "[" * 100_000]) + "\n")
    foreign = [folder / ".DS_Store", folder / "abc.jsonl", folder / "notes" / "x", folder / "1_1-2.jsonl" / "x"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"run": "x", "what": "open"}\n')
    receiver = _Silent(away=False)
    assert [*left_journals(folder, lambda pid: False)] == [{"run-1"}]
    assert deliver(folder, receiver, lambda pid: False) == 1
    assert receiver.told == ["run-1", 5, 7, "KILLED"]
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(foreign)


def test_what_the_disk_did_not_take_is_written_before_a_result_is_kept(home: Home) -> None:
    (home.mlflow / JOURNAL).write_bytes(b"")  # in the place of the folder
    tracker = opened(home, "run-1")
    tracker.log_metrics({"x": 1.0}, 5)
    (home.mlflow / JOURNAL).unlink()
    tracker.sync()
    (journal,) = (home.mlflow / JOURNAL).glob("*.jsonl")
    assert '"open"' in journal.read_text() and '"step": 5' in journal.read_text()
