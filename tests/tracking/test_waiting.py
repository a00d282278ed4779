"""What waits for MLflow is found without asking MLflow, and delivered by a process that makes no run of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from command_line import ROOT, child_environment
from mlflow import MlflowClient
from nights.servers import Mlflow
from nights.servers import MlflowClient as ClientInMemory

from charengine.machine.home import Home
from charengine.machine.locks import flocked
from charengine.machine.processes import this_process
from charengine.tracking import waiting
from charengine.tracking.journal import JOURNAL, Journal, JournalTracker
from charengine.tracking.spool import MetricSpool
from charengine.tracking.waiting import something_waits


def ended_process() -> int:
    """The id of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def journalled(home: Home, ended: bool = True) -> Path:
    """What a character's run wrote down while MLflow was away: a training and the pick; its process has died, unless told otherwise."""
    tracker = JournalTracker(Journal(home.mlflow / JOURNAL), "Aya", "run-1", None, {"seed": 1}, {"character": "Aya"})
    train = tracker.child("train", key="train-1")
    for step in (1, 2, 3):
        train.log_metrics({"train/loss": 1 / step}, step)
    train.finish()
    sweep = tracker.child("sweep", key="sweep-1")
    sweep.register_pick("character-aya", b"adapter", 3, 0.8, {"score": 0.5})
    sweep.finish()
    (path,) = (home.mlflow / JOURNAL).glob("*.jsonl")
    if not ended:
        return path
    tracker.finish()
    return of_another_process(path, ended_process())


def of_another_process(path: Path, pid: int) -> Path:
    """The same journal, as that process would have written it."""
    other = path.with_name(f"{pid}-{path.name.partition('-')[2]}")
    path.with_suffix("").rename(other.with_suffix(""))
    return path.rename(other)


def spooled(home: Home, run_id: str = "0" * 32) -> Path:
    """The points of a run that MLflow did not take, written by this process."""

    def refuse(run: str, points: object) -> None:
        raise OSError("away")

    spool = MetricSpool(home.mlflow / "spool", refuse)
    spool.add(run_id, {"train/loss": 0.5}, 4)
    spool.close()
    return home.mlflow / "spool" / f"{run_id}.jsonl"


def deliver(home: Home) -> str:
    """Run the process that delivers, as `charengine up` does; what it said."""
    command = [sys.executable, "-m", "charengine.tracking.waiting"]
    done = subprocess.run(command, env=child_environment(home), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_run_that_nobody_follows_is_told_by_a_process_of_its_own_whole_finished_and_with_one_pick(home: Home) -> None:
    journalled(home)
    client = MlflowClient(f"sqlite:///{home.mlflow / 'mlflow.db'}")
    assert client.get_experiment_by_name("charengine") is None  # as on a home on which MLflow was away all night
    for _ in range(2):  # the second finds nothing to tell
        deliver(home)
        assert not something_waits(home) and not list((home.mlflow / JOURNAL).glob("*"))
        experiment = client.get_experiment_by_name("charengine")
        assert experiment and experiment.artifact_location.startswith("file:")
        found = client.search_runs([experiment.experiment_id])
        assert {run.info.run_name: run.info.status for run in found} == dict.fromkeys(
            ("Aya", "Aya train", "Aya sweep"), "FINISHED"
        )
        assert len(found) == 3
        (train,) = [run for run in found if run.info.run_name == "Aya train"]
        history = client.get_metric_history(train.info.run_id, "train/loss")
        assert sorted(point.step for point in history) == [1, 2, 3]
        assert [version.name for version in client.search_model_versions()] == ["character-aya"]


def test_the_points_of_a_process_that_died_are_sent_and_its_run_is_closed_by_the_process_that_delivers(
    home: Home,
) -> None:
    client = MlflowClient(f"sqlite:///{home.mlflow / 'mlflow.db'}")
    experiment = client.create_experiment("charengine")
    dead = f"{this_process().rpartition(':')[0]}:{ended_process()}"
    tags = {"charengine.key": "train-1", "charengine.process": dead}
    run = client.create_run(experiment, run_name="Aya train", tags=tags)
    path = spooled(home, run.info.run_id)
    path.write_text(path.read_text().replace(this_process(), dead))
    assert something_waits(home)
    deliver(home)
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [4]
    assert not path.exists() and not something_waits(home)


def test_what_somebody_at_work_will_tell_himself_does_not_wait(home: Home) -> None:
    assert not something_waits(home)
    path = journalled(home, ended=False)
    assert not something_waits(home)  # this process writes on
    of_another_process(path, ended_process())
    assert something_waits(home)
    for key in ("run-1", "sweep-1"):
        with flocked(home.locks / f"{key}.lock", "held"):
            assert not something_waits(home)
    assert something_waits(home)


def test_points_wait_once_their_process_has_ended_or_when_nobody_knows_it(home: Home) -> None:
    path = spooled(home)
    assert not something_waits(home)
    own = path.read_text()
    dead = f"{this_process().rpartition(':')[0]}:{ended_process()}"
    for text in (own.replace(this_process(), dead), json.dumps(["train/loss", 0.5, 4, 0]) + "\n"):
        path.write_text(text)
        assert something_waits(home)
    path.write_text(own.replace(this_process(), dead) + own)  # and another one went on with the run
    assert not something_waits(home)


def test_the_files_of_a_delivered_journal_whose_removal_was_cut_short_wait(home: Home) -> None:
    (home.mlflow / JOURNAL / f"{os.getpid()}-0").mkdir(parents=True)
    assert not something_waits(home)
    (home.mlflow / JOURNAL / f"{ended_process()}-0").mkdir()
    assert something_waits(home)


def test_a_process_that_reaches_no_mlflow_says_so_and_keeps_what_waits(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = journalled(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert waiting.main() == 1 and path.exists() and something_waits(home)


def test_on_the_server_of_up_the_experiment_is_made_in_the_home_though_up_is_ending(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that tells of `up` is gone by then; a place that only that server knows could not be read without it."""
    made: list[tuple[str, ...]] = []

    class Client(ClientInMemory):
        def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> str:
            made.append((name, str(artifact_location)))
            return super().create_experiment(name, artifact_location, tags)

    monkeypatch.setattr(mlflow, "MlflowClient", lambda **_: Client(Mlflow(), lambda call: False))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.night")
    assert waiting.main() == 0
    assert made == [("charengine", (home.mlflow / "artifacts").as_uri())]
