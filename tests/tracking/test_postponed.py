"""What MLflow does not take is told by the next run that reaches it; nothing twice, nothing lost, no run left open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from nights.servers import Mlflow, MlflowClient

from charengine.machine.home import Home
from charengine.machine.locks import flocked
from charengine.tracking import catching_up, spool
from charengine.tracking.journal import JOURNAL
from charengine.tracking.open_tracker import open_tracker
from charengine.tracking.protocol import Tracker

LOSS = "train/loss"


class Server:
    """MLflow, which refuses the calls named in `refuses` (all with "*"), and loses the answers to those in `loses`."""

    def __init__(self) -> None:
        self.mlflow, self.refuses, self.loses, self.asked = Mlflow(), set[str](), set[str](), list[str]()

    def request(self, name: str) -> bool:
        self.asked.append(name)
        if {name, "*"} & self.refuses:
            raise MlflowException(f"{name}: refused")
        return name in self.loses

    def run(self, name: str) -> Any:
        (found,) = [run for run in self.mlflow.runs.values() if run.name == name]
        return found

    def steps(self, name: str, metric: str = LOSS) -> list[int]:
        return sorted(step for step, _, _ in self.run(name).metrics.get(metric, []))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setattr(mlflow, "MlflowClient", lambda **_: MlflowClient(made.mlflow, made.request))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.night")
    monkeypatch.setattr("charengine.tracking.mlflow.MLflowTracker.watch_machine", lambda self: None)
    monkeypatch.setattr(spool, "SEND_EVERY", 0.01)
    monkeypatch.setattr("charengine.tracking.attempts.REST_AFTER_FAILURE", 0.0)
    yield made


def opened(home: Home, key: str = "run-1") -> Tracker:
    return open_tracker(home, project="charengine", name="Aya", key=key, params={"seed": 1}, tags={})


def waiting(home: Home) -> list[str]:
    return [path.name for part in (JOURNAL, "spool") for path in (home.mlflow / part).glob("*")]


def test_a_pick_that_is_refused_is_registered_by_the_next_run(home: Home, server: Server) -> None:
    run = opened(home)
    sweep = run.child("sweep", key="sweep-1")
    server.refuses = {"create_model_version"}
    sweep.register_pick("Aya", b"adapter", 4, 0.8, {"score": 0.5})
    sweep.set_tags({"later": "too"})
    sweep.finish()
    run.finish()
    assert server.mlflow.versions == {"Aya": []} and waiting(home)
    server.refuses = set()
    opened(home, "run-2").finish()
    assert len(server.mlflow.versions["Aya"]) == 1 and server.mlflow.aliases["Aya"] == {"champion": "1"}
    tags = server.run("Aya sweep").tags
    assert tags["charengine.registered"] == "models:/Aya/1" and tags["later"] == "too"
    assert tags["charengine.pick"].partition("/")[0] == list(server.mlflow.models)[-1]  # the first was never registered
    assert {one.status for one in server.mlflow.runs.values()} == {"FINISHED"} and waiting(home) == []


def test_a_pick_that_mlflow_and_the_disk_refuse_is_written_down_before_the_result_is_kept(
    home: Home, server: Server
) -> None:
    sweep = opened(home).child("sweep", key="sweep-1")
    server.refuses = {"create_model_version"}
    (home.mlflow / JOURNAL).write_bytes(b"")  # in the place of the folder
    sweep.register_pick("Aya", b"adapter", 4, 0.8, {"score": 0.5})
    (home.mlflow / JOURNAL).unlink()
    sweep.sync()
    (journal,) = (home.mlflow / JOURNAL).glob("*.jsonl")
    assert '"what": "pick"' in journal.read_text()


def test_a_pick_whose_answer_was_lost_is_not_registered_again(home: Home, server: Server) -> None:
    run = opened(home)
    sweep = run.child("sweep", key="sweep-1")
    server.loses = {"create_model_version"}
    sweep.register_pick("Aya", b"adapter", 4, 0.8, {"score": 0.5})
    server.loses = set()
    sweep.finish()
    run.finish()
    opened(home, "run-2").finish()
    assert len(server.mlflow.versions["Aya"]) == 1 and server.mlflow.aliases["Aya"] == {"champion": "1"}


def test_metrics_that_wait_and_a_run_that_could_not_be_closed_are_delivered_by_another_run(
    home: Home, server: Server
) -> None:
    run = opened(home)
    train = run.child("train", key="train-1")
    server.refuses = {"log_batch", "set_terminated"}
    train.log_metrics({LOSS: 0.5}, 1)
    train.finish()
    run.finish()
    server.refuses = set()
    assert server.run("Aya train").status == "RUNNING" and server.steps("Aya train") == []
    opened(home, "run-2").finish()
    assert server.run("Aya train").status == "FINISHED" and server.steps("Aya train") == [1] and waiting(home) == []


def test_a_run_whose_process_was_killed_is_closed_and_its_metrics_are_sent(
    home: Home, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = opened(home).child("train", key="train-1")
    server.refuses = {"log_batch"}
    train.log_metrics({LOSS: 0.5}, 1)
    for file in train._connection.spool._files.values():  # type: ignore[attr-defined]
        file.close()
    train._connection.spool._files.clear()  # type: ignore[attr-defined] # killed: nothing more is heard of this process
    server.refuses = set()
    for one in server.mlflow.runs.values():
        one.tags["charengine.process"] = "here:7777777"
    monkeypatch.setattr(catching_up, "has_ended", lambda process: process == "here:7777777")
    opened(home, "run-2").finish()
    assert [(one.name, one.status) for one in server.mlflow.runs.values()] == [
        ("Aya", "KILLED"),
        ("Aya train", "KILLED"),
        ("Aya", "FINISHED"),
    ]
    assert server.steps("Aya train") == [1]


def test_a_run_that_another_process_works_in_is_left_alone(home: Home, server: Server) -> None:
    opened(home)
    for one in server.mlflow.runs.values():
        one.tags["charengine.process"] = "another-machine:1"
    opened(home, "run-2").finish()
    assert [one.status for one in server.mlflow.runs.values()] == ["RUNNING", "FINISHED"]


def test_what_waits_for_a_run_is_told_when_nobody_is_at_work_in_it(home: Home, server: Server) -> None:
    """Both would ask MLflow which steps it holds, and then both would tell it the missing ones."""
    server.refuses = {"*"}
    run = opened(home)
    run.child("train", key="train-1").log_metrics({LOSS: 0.5}, 1)
    run.finish()
    server.refuses = set()
    for key in ("run-1", "train-1"):
        with flocked(home.locks / f"{key}.lock", "held"):
            opened(home, "run-2").finish()
            assert len(waiting(home)) == 1 and len(server.mlflow.runs) == 1
    with flocked(home.locks / "run-1.lock", "held"):  # as the run itself does
        opened(home).finish()
    assert server.steps("Aya train") == [1] and waiting(home) == []


def test_a_run_that_died_is_left_to_who_is_at_work_in_it_again(
    home: Home, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(home)
    (run,) = server.mlflow.runs.values()
    run.tags["charengine.process"] = "here:7777777"
    monkeypatch.setattr(catching_up, "has_ended", lambda process: process == "here:7777777")
    with flocked(home.locks / "run-1.lock", "held"):
        opened(home, "run-2").finish()
        assert run.status == "RUNNING"
    opened(home, "run-2").finish()
    assert run.status == "KILLED"


@pytest.mark.parametrize("ended", ["FAILED", "KILLED", "nobody knows"])
def test_a_run_that_is_whole_is_finished_however_a_later_process_of_it_ends(
    home: Home, server: Server, monkeypatch: pytest.MonkeyPatch, ended: Any
) -> None:
    """Else a cast that is given again and killed leaves a character that is made and called KILLED for ever."""
    opened(home).finish()
    (home.store / "results").mkdir(parents=True, exist_ok=True)
    (home.store / "results" / "run-1.json").write_text("{}")
    again = opened(home)
    (run,) = server.mlflow.runs.values()
    assert run.status == "RUNNING"
    if ended == "nobody knows":
        run.tags["charengine.process"] = "here:7777777"
        monkeypatch.setattr(catching_up, "has_ended", lambda process: process == "here:7777777")
        opened(home, "run-2").finish()
    else:
        again.finish(ended)
    assert run.status == "FINISHED"


def test_a_step_is_not_sent_again_while_mlflow_does_not_say_whether_it_holds_it(home: Home, server: Server) -> None:
    run = opened(home)
    run.log_metrics({"outcome": 1.0}, 0)
    run.finish()
    again = opened(home)
    server.refuses = {"get_metric_history"}
    again.log_metrics({"outcome": 1.0}, 0)
    server.refuses = set()
    again.finish()
    opened(home, "run-2").finish()
    first = next(iter(server.mlflow.runs.values()))
    assert [step for step, _, _ in first.metrics["outcome"]] == [0] and waiting(home) == []


def test_journals_of_two_processes_are_told_whole_in_any_order(home: Home, server: Server) -> None:
    """The later process's steps may be delivered first; the earlier ones are not taken for known."""
    server.refuses = {"*"}
    for steps in ((1, 2), (2, 3)):
        tracker = opened(home)
        for step in steps:
            tracker.log_metrics({LOSS: step / 10}, step)
        tracker.finish()
    folder = home.mlflow / JOURNAL
    first, second = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    swap(first, second)
    server.refuses = set()
    opened(home, "run-2").finish()
    found = next(run for run in server.mlflow.runs.values() if run.tags["charengine.key"] == "run-1")
    assert sorted(step for step, _, _ in found.metrics[LOSS]) == [1, 2, 3] and waiting(home) == []


def swap(one: Path, other: Path) -> None:
    """Exchange the names, which decide who is delivered first."""
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
