"""Tracking: nothing logged twice, nothing lost, and no MLflow trouble ever stops a run."""

from __future__ import annotations

import http.server
import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing as closed
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from command_line import child_environment
from PIL import Image

from charengine.machine.addresses import database_uri
from charengine.machine.home import Home
from charengine.tracking.journal import JournalTracker
from charengine.tracking.open_tracker import open_tracker
from charengine.tracking.protocol import Tracker, closing
from charengine.tracking.spool import MetricSpool, Point, left_points

LOSS = "train/loss"


def opened(home: Home, key: str = "run-1") -> Tracker:
    return open_tracker(home, project="charengine", name="aya", key=key, params={"seed": 42}, tags={"character": "aya"})


def client(home: Home) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=database_uri(home), registry_uri=database_uri(home))


def steps(home: Home, run_id: str | None, metric: str = LOSS) -> list[int]:
    return [point.step for point in client(home).get_metric_history(run_id, metric)]


def test_a_run_with_the_same_key_is_opened_again_not_made_again(home: Home) -> None:
    first = opened(home)
    child = first.child("train", key="train-1", params={"rank": 16})
    child.finish()
    first.finish()
    second = opened(home)
    assert second.run_id == first.run_id
    assert second.child("train", key="train-1").run_id == child.run_id
    assert second.child("train", key="train-2").run_id != child.run_id
    second.finish()


def test_a_run_is_found_by_its_key_in_an_index_not_among_the_keys_of_all(home: Home) -> None:
    opened(home).finish()
    asked: list[tuple[str, Any]] = []

    def noted(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        asked.append((statement, values))

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", noted)
    try:
        opened(home).finish()
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", noted)
    searches = [(statement, values) for statement, values in asked if "run-1" in values and "JOIN" in statement]
    assert searches
    with closed(sqlite3.connect(home.mlflow / "mlflow.db")) as database:
        for statement, values in searches:
            plan = [row[-1] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            assert any("charengine_tags (key=? AND value=?)" in line for line in plan), plan
            assert not any(line.startswith("SCAN") for line in plan), plan


def test_a_training_keeps_its_run_under_another_parent(home: Home) -> None:
    first = opened(home, "run-1")
    train = first.child("train", key="train-1")
    first.finish("KILLED")
    second = opened(home, "run-2")
    assert second.run_id != first.run_id
    assert second.child("train", key="train-1").run_id == train.run_id
    second.finish()


def test_cells_of_two_sweeps_do_not_share_runs(home: Home) -> None:
    parent = opened(home)
    one = parent.child("sweep", key="sweep-1").child("cell", key="300/0.8")
    two = parent.child("sweep", key="sweep-2").child("cell", key="300/0.8")
    assert one.run_id != two.run_id
    parent.finish()


def test_a_child_run_is_named_after_those_above_it_and_a_cell_first_after_what_no_other_has(home: Home) -> None:
    parent = opened(home)
    cell = parent.child("sweep", key="sweep-1").child("300 × 0.8", key="300/0.8")
    assert client(home).get_run(cell.run_id).info.run_name == "300 × 0.8 aya sweep"
    parent.finish()


def test_steps_that_were_logged_are_not_logged_again(home: Home) -> None:
    first = opened(home)
    for step in range(1, 71):
        first.log_metrics({LOSS: 1 / step}, step)
    first.finish("KILLED")
    again = opened(home)
    assert again.last_step() == 70
    for step in range(51, 101):
        again.log_metrics({LOSS: 1 / step}, step)
    again.finish()
    assert steps(home, again.run_id) == list(range(1, 101))


def test_what_a_killed_process_had_not_sent_is_sent_by_the_next(home: Home) -> None:
    code = (
        "import os, sys; sys.path.insert(0, 'tests')\n"
        "from charengine.machine.home import find_home\n"
        "import charengine.tracking.spool as spool; spool.SEND_EVERY = 60.0\n"
        "from charengine.tracking.open_tracker import open_tracker\n"
        "run = open_tracker(find_home(), project='charengine', name='aya', key='run-1', params={}, tags={})\n"
        "for step in range(1, 41): run.log_metrics({'train/loss': 1 / step}, step)\n"
        "os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_environment(home))
    assert done.returncode == 9
    again = opened(home)
    assert again.last_step() == 40
    again.log_metrics({LOSS: 0.0}, 40)
    again.log_metrics({LOSS: 0.0}, 41)
    again.finish()
    assert steps(home, again.run_id) == list(range(1, 42))
    assert list((home.mlflow / "spool").iterdir()) == []


@pytest.mark.parametrize(
    ("ending", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_is_closed_with_the_status_it_ended_in(
    home: Home, ending: type[BaseException] | None, status: str
) -> None:
    run = opened(home)
    if ending:
        with pytest.raises(ending), closing(run):
            raise ending
    else:
        with closing(run):
            pass
    assert client(home).get_run(run.run_id).info.status == status


def test_pictures_files_and_the_dataset_arrive(home: Home) -> None:
    run = opened(home)
    run.log_image(Image.new("RGB", (8, 8), "red"), "sheet")
    run.log_bytes(b"<html></html>", "report/report.html")
    run.log_dataset("aya", "d" * 64, {"trigger": "ohwaya"})
    run.finish()
    found = client(home)
    assert [item.path for item in found.list_artifacts(run.run_id, "images")] == ["images/sheet.png"]
    assert [item.path for item in found.list_artifacts(run.run_id, "report")] == ["report/report.html"]
    assert found.get_run(run.run_id).inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert Path(found.get_run(run.run_id).info.artifact_uri.removeprefix("file://")).is_relative_to(home.mlflow)


def test_a_checkpoint_is_one_logged_model_however_often_it_is_logged(home: Home) -> None:
    run = opened(home)
    first = run.log_checkpoint(b"adapter", 300, {"loss": 0.1})
    assert first and run.log_checkpoint(b"adapter", 300, {"loss": 0.1}) == first
    run.finish()
    again = opened(home)
    assert again.log_checkpoint(b"adapter", 300, {"loss": 0.1}) == first
    again.finish()
    assert len(client(home).get_run(run.run_id).outputs.model_outputs) == 1


def test_the_pick_becomes_the_champion_once(home: Home) -> None:
    run = opened(home)
    for _ in range(2):
        run.register_pick("character-aya", b"adapter", 300, 0.8, {"identity": 0.9})
    run.finish()
    champion = client(home).get_model_version_by_alias("character-aya", "champion")
    assert int(champion.version) == 1
    assert (champion.tags["picked_strength"], champion.tags["recommended_strength"]) == ("0.8", "1.0")


def test_a_pick_that_could_not_be_rescaled_is_recommended_at_its_own_strength(home: Home) -> None:
    run = opened(home)
    run.register_pick("character-aya", b"adapter", 300, 0.8, {"identity": 0.9}, rescaled=False)
    run.finish()
    champion = client(home).get_model_version_by_alias("character-aya", "champion")
    assert (champion.tags["picked_strength"], champion.tags["recommended_strength"]) == ("0.8", "0.8")


@pytest.fixture
def _asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client tries as often as ever, and does not wait in between."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


@pytest.mark.usefixtures("_asked_again_at_once")
def test_an_unreachable_server_leaves_the_run_going_and_written_down(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        tracker = opened(home)
    assert isinstance(tracker, JournalTracker) and tracker.run_id is None
    assert "not tracked" in caplog.text


class BrokenServer(http.server.BaseHTTPRequestHandler):
    """Answers 500 to everything."""

    def answer(self) -> None:
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST = answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def broken_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BrokenServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("_asked_again_at_once")
def test_a_server_that_dies_on_the_way_costs_training_nothing_and_loses_nothing(home: Home, broken_server: str) -> None:
    run: Any = opened(home)
    working = run._connection.client

    from mlflow import MlflowClient

    run._connection.client = MlflowClient(tracking_uri=broken_server)
    started = time.monotonic()
    for step in range(1, 1001):
        run.log_metrics({LOSS: 1 / step}, step)
    assert time.monotonic() - started < 1.0  # a millisecond a step at most, on any machine
    run.finish()
    assert (home.mlflow / "spool" / f"{run.run_id}.jsonl").exists()

    run._connection.client = working
    again = opened(home)
    again.finish()
    assert steps(home, again.run_id) == list(range(1, 1001))


def test_a_spool_that_is_never_emptied_holds_a_bounded_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charengine.tracking.spool.QUEUE", 100)

    def refuse(run_id: str, points: list[Point]) -> None:
        raise ConnectionError("away")

    spool = MetricSpool(tmp_path, refuse)
    for step in range(1000):
        spool.add("run", {LOSS: 0.0}, step)
    assert len(spool._queue) <= 100
    assert spool.drain("run", seconds=1.0) is False
    spool.close()

    got: list[Point] = []
    spool = MetricSpool(tmp_path, lambda run_id, points: got.extend(points))
    assert spool.recover("run", lambda key: ()) == 1000
    assert spool.drain("run") is True
    spool.close()
    assert [point.step for point in got] == list(range(1000))


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text('["train/loss", 0.5, 1, 1700000000000]\n["train/lo')
    got: list[Point] = []
    spool = MetricSpool(tmp_path, lambda run_id, points: got.extend(points))
    spool.recover("run", lambda key: ())
    spool.drain("run")
    spool.close()
    assert [(point.key, point.step) for point in got] == [(LOSS, 1)]


def test_lines_and_files_that_are_none_of_points_are_passed_over(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path / "spool", lambda *_: None)
    path = tmp_path / "spool" / f"{'0' * 32}.jsonl"
    foreign = [
        '"abcd"',
        "[1, 2, 3, 4]",
        '{"process": 5}',
        '["k", 1, 2]',
        '["k", "1", 2, 3]',
        "[" * 100_000,
        '{"process": ' + "[" * 100_000,
    ]
    path.write_bytes("\n".join([*foreign, '["train/loss", 0.5, 7, 1]']).encode() + b"\n\xff\xfe\n")
    assert spool.written_step(path.stem, LOSS) == 7 and spool.waiting() == [path.stem] and left_points(path.parent)
    path.rename(path.with_name("notes.jsonl"))
    path.mkdir()
    assert spool.waiting() == [] and not left_points(path.parent) and spool.written_step(path.stem, LOSS) == -1
    spool.close()


def test_what_waits_for_a_run_that_a_new_database_has_not_keeps_no_other_back(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    (home.mlflow / "spool").mkdir(parents=True)
    (home.mlflow / "spool" / f"{'0' * 32}.jsonl").write_text('["train/loss", 0.5, 7, 1]\n')
    (home.mlflow / "journal").mkdir()
    (home.mlflow / "journal" / ".DS_Store").write_bytes(b"x")
    tracker = open_tracker(home, project="charengine", name="Mone", key="run-1", params={}, tags={})
    assert tracker.run_id and "could not be told" not in caplog.text
    tracker.finish()


def test_a_line_that_comes_after_one_cut_by_a_crash_is_read(tmp_path: Path) -> None:
    run_id = "0" * 32
    (tmp_path / f"{run_id}.jsonl").write_text('["train/loss", 0')
    got: list[Point] = []
    spool = MetricSpool(tmp_path, lambda run_id, points: got.extend(points))
    spool.add(run_id, {LOSS: 0.5}, 1)
    assert spool.written_step(run_id, LOSS) == 1
    assert not left_points(tmp_path)  # nor does it take the line that says who writes
    spool.close()


def test_what_the_disk_did_not_take_is_written_before_what_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest step in the file says that those below are there: who continues a training tells no lower one again."""

    def refuse(run_id: str, points: list[Point]) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr("charengine.tracking.spool.DISK_PAUSES", (0.0, 0.0))
    spool = MetricSpool(tmp_path, refuse)
    path = tmp_path / "run.jsonl"
    steps = lambda: [json.loads(line)[2] for line in path.read_text().splitlines() if line.startswith("[")]  # noqa: E731
    path.mkdir()
    spool.add("run", {LOSS: 0.5}, 1)
    spool.sync("run")  # it cannot be: a training goes on all the same
    path.rmdir()
    spool.add("run", {LOSS: 0.4}, 2)
    assert steps() == [1, 2]
    spool._close_file("run")
    aside = path.rename(tmp_path / "aside")
    path.mkdir()
    spool.add("run", {LOSS: 0.3}, 3)
    path.rmdir()
    aside.rename(path)
    assert spool.written_step("run", LOSS) == 3
    spool.sync("run")
    assert steps() == [1, 2, 3]
    spool.close()


@pytest.mark.slow
def test_four_first_processes_at_once_make_one_database(tmp_path: Path) -> None:
    place = Home(tmp_path / "fresh").create()
    code = (
        "from charengine.machine.home import find_home\n"
        "from charengine.machine.environment import apply_defaults\n"
        "home = find_home(); apply_defaults(home)\n"
        "from charengine.tracking.mlflow import open_run\n"
        "run = open_run(home, 'charengine', 'aya', str(__import__('os').getpid()), {}, {})\n"
        "run.log_metrics({'loss': 1.0}, 1); run.finish()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], env=child_environment(place)) for _ in range(4)]
    assert [process.wait(timeout=180) for process in processes] == [0, 0, 0, 0]
    found = client(place)
    experiment = found.get_experiment_by_name("charengine")
    assert len(found.search_runs([experiment.experiment_id])) == 4
