"""Prefect and MLflow as the gallery asks them: patient where they are busy, in words where they are gone, never twice."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from charengine.errors import BadInput
from charengine.profiles.loading import load_profile
from charengine.records import RunRecord
from charengine.services.estimate import sweep_pictures
from charengine.services.gallery.prefect import Prefect, PrefectAway
from charengine.services.gallery.progress import progress_of
from charengine.services.gallery.server import allowed_origins
from charengine.services.gallery.times import expected, in_words
from charengine.services.gallery.tracked import Tracked

Json = dict[str, Any]


class Busy(http.server.BaseHTTPRequestHandler):
    """Answers as Prefect does: busy at first, with a token that runs out."""

    token = 1
    busy = 0  # answers of 503 to come
    asked: list[tuple[str, Any]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/api/csrf-token"):
            self.answer(200, {"token": f"token-{self.token}"})
        elif self.path == "/api/deployments/name/character/character":
            self.answer(200, {"id": "the-deployment"})
        else:
            self.answer(404, {"detail": "not there"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Prefect-Csrf-Token"] != f"token-{self.token}":
            self.answer(403, {"detail": "Invalid CSRF token"})
            return
        self.asked.append((self.path, body))
        if type(self).busy:
            type(self).busy -= 1
            self.answer(503, {"detail": "database is locked"})
        elif body.get("parameters") == "wrong":
            self.answer(409, {"detail": "parameters do not fit"})
        else:
            self.answer(201, {"id": "a-run"} if "create_flow_run" in self.path else [])

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefect]:
    for name, value in (("token", 1), ("busy", 0), ("asked", [])):
        monkeypatch.setattr(Busy, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield Prefect(f"http://127.0.0.1:{server.server_address[1]}/api", sleep=lambda seconds: None)
        server.shutdown()


def test_a_busy_prefect_is_asked_again_with_the_same_word_so_that_nothing_starts_twice(prefect: Prefect) -> None:
    Busy.busy = 3
    assert prefect.start("character", {"prompt": "x"}, "Ann", once="word", queue="batch") == "a-run"
    bodies = [body for path, body in Busy.asked if path == "/api/deployments/the-deployment/create_flow_run"]
    assert len(bodies) == 4 and {body["idempotency_key"] for body in bodies} == {"word"}
    assert bodies[0]["work_queue_name"] == "batch" and bodies[0]["name"] == "Ann"


def test_a_token_that_has_run_out_is_taken_anew(prefect: Prefect) -> None:
    prefect.cancel("first")
    Busy.token = 2
    prefect.cancel("second")
    assert [path for path, _ in Busy.asked] == [f"/api/flow_runs/{name}/set_state" for name in ("first", "second")]


def test_one_that_stays_busy_is_away_and_one_that_refuses_says_why(prefect: Prefect) -> None:
    with pytest.raises(BadInput, match="parameters do not fit"):
        prefect.start("character", "wrong", "Ann", once="word")  # type: ignore[arg-type]
    Busy.busy = 100
    with pytest.raises(PrefectAway, match="is too busy to answer .*database is locked.*; wait a moment"):
        prefect.character_runs()
    with pytest.raises(PrefectAway, match=r"no deployment sweep/sweep"):
        prefect.start("sweep", {}, "Ann", once="word")
    with pytest.raises(PrefectAway, match="does not answer .*; `charengine up` starts it$"):
        Prefect("http://127.0.0.1:9/api", sleep=lambda seconds: None).character_runs()


def test_pages_that_are_open_together_ask_once(prefect: Prefect) -> None:
    prefect.task_runs(["a"])
    prefect.task_runs(["a"])
    prefect.task_runs(["b"])
    assert len(Busy.asked) == 2
    prefect.cancel("a")
    prefect.task_runs(["a"])  # what was answered before a change is out of date
    assert len(Busy.asked) == 4


def test_the_stages_of_hundreds_of_runs_are_asked_for_together_and_none_is_left_out(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def answer(path: str, body: Json) -> list[Json]:
        """Six stages a run, but of one run 150; 200 at most."""
        runs = body["flow_runs"]["id"]["any_"]
        asked.append(len(runs))
        tasks = [{"flow_run_id": run, "name": f"{n}"} for run in runs for n in range(150 if run == "run 3" else 6)]
        return tasks[:200]

    monkeypatch.setattr(prefect, "_ask", answer)
    found = prefect.task_runs([f"run {number}" for number in range(200)])
    assert {run: len(tasks) for run, tasks in found.items() if run != "run 3"} == {
        f"run {n}": 6 for n in range(200) if n != 3
    }
    assert len(found["run 3"]) == 150 and len(asked) < 15
    assert prefect.task_runs([]) == {}


def test_a_run_of_mlflows_that_is_known_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tracked, asked = Tracked("http://mlflow"), []
    answers = iter([[], [{"info": {"run_id": "ab" * 16}}]])
    monkeypatch.setattr(tracked, "_search", lambda wanted: asked.append(wanted) or next(answers))
    assert [tracked.run_of("a-1") for _ in range(3)] == ["", "ab" * 16, "ab" * 16]
    assert len(asked) == 2


def test_a_silent_mlflow_is_no_reason_to_wait_or_fail() -> None:
    tracked = Tracked("http://127.0.0.1:9")
    assert (
        tracked.runs_page == "" and tracked.run_of("abc") == "" and tracked.picture("ab" * 16, "images/x.png") is None
    )
    assert Tracked("sqlite:////tmp/mlflow.db").strengths_page == ""


def test_the_newest_sample_is_the_one_of_the_highest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tracked = Tracked("http://mlflow")
    names = [f"images/samples+step+{step}+timestamp+1+x.png" for step in (0, 100, 20)]
    names += ["images/samples+step+300+timestamp+1+x+compressed.webp", "images/other+step+400+x.png"]
    monkeypatch.setattr(tracked, "_search", lambda wanted: [{"info": {"run_id": "ef" * 16}}])
    monkeypatch.setattr(tracked, "_get", lambda path, age: {"files": [{"path": name} for name in names]})
    assert tracked.latest_sample("ab" * 16) == (100, f"{'ef' * 16}/{names[1]}")


def test_more_pages_may_call_only_when_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("http://127.0.0.1:4300", "http://localhost:4300")
    assert allowed_origins(4300) == own
    monkeypatch.setenv("CHARENGINE_GALLERY_ORIGINS", "https://studio.example, ")
    assert allowed_origins(4300) == (*own, "https://studio.example")


def test_the_time_is_reckoned_by_steps_and_pictures_of_runs_with_the_same_profile(
    sample: tuple[RunRecord, Any],
) -> None:
    run = sample[0]  # 300 steps of 210 ms in 92 s; 78 pictures in 75.5 s; its sheet was cached
    found = expected(load_profile("embedded", ["train.steps=100", "sweep.pictures=39"]), [run])
    assert found and found.runs == 1 and "sheet" not in found.stages
    assert found.stages["train"] == pytest.approx(92 - 300 * 0.21 + 100 * 0.21)
    assert found.stages["sweep"] == pytest.approx(75.5 * 39 / sum(cell.images for cell in run.sweep.cells))
    assert expected(load_profile("sdxl-12gb"), [run]) is None
    alone = run.training.model_copy(update={"facts": {"step_ms": 210.0, "stepping_ms": 100.0}})
    short = expected(load_profile("embedded", ["train.steps=600"]), [run.model_copy(update={"training": alone})])
    assert short and short.stages["train"] == pytest.approx(92 + 300 * 0.1)  # checkpoints do not count with the steps
    longer = [run.model_copy(update={"training": run.training.model_copy(update={"steps": 1200})}), run]
    alike = expected(load_profile("embedded", ["train.steps=200"]), longer)
    assert alike and alike.runs == 1 and alike.stages["train"] == pytest.approx(92 - 300 * 0.21 + 200 * 0.21)
    far = expected(load_profile("embedded", ["train.steps=6000"]), [run])
    assert far and far.words.startswith("at most about") and "one earlier run of 300 steps" in far.words
    grid = load_profile(
        "embedded", ["sweep.design=grid", "sweep.strengths=[0.5, 1.0]", "sweep.checkpoints=2", "sweep.seeds=3"]
    )
    assert sweep_pictures(grid.sweep, 4) == (1 + 2 * 2) * 4 * 3
    assert [in_words(seconds) for seconds in (45, 600, 9000)] == ["45 s", "10 min", "2.5 h"]


def test_the_next_stage_begins_before_prefect_hears_of_it_unless_it_waits_to_be_tried_again() -> None:
    for state, begun in (("COMPLETED", "crop"), ("SCHEDULED", "")):
        assert progress_of([{"name": "sheet-x", "state_type": state}], None).stage == begun
