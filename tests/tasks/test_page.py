"""A character's page: there from the start, written again by every stage; training is followed and never held up."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest
from prefect.logging.handlers import APILogHandler
from run_samples import sample_run

from charengine.records import StageFact
from charengine.run import steps
from charengine.stage import Progress
from charengine.store import Store
from charengine.tracking.protocol import NullTracker
from tasks import live, sweep, train
from tasks.page import current_page, in_form_words, showing


class Served(NullTracker):
    """An MLflow run with pages."""

    url, adapter_url = "http://mlflow/run", "http://mlflow/adapter"

    def picture_url(self, artifact: str) -> str:
        return f"http://mlflow/{artifact}"


@pytest.fixture
def workspace() -> Any:
    profile = SimpleNamespace(expand=SimpleNamespace(count=0))
    character = SimpleNamespace(name="Zorga", prompt="an orc")
    return SimpleNamespace(slug="zorga", character=character, profile=profile, tracker=Served())


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(live.Aside, "show", lambda self, text: texts.append(text))
    return texts


def test_the_page_is_there_from_the_start_and_every_stage_writes_on_it(
    workspace: Any, shown: list[str], tmp_path: Path
) -> None:
    with showing("Zorga", "an orc") as page:
        assert "# Zorga" in shown[0] and "> an orc" in shown[0]  # before models are looked for
        page.begin(workspace, tmp_path)
        assert "[The run in MLflow](http://mlflow/run)" in shown[1] and "| train | waits |" in shown[1]
        assert current_page() is page
        page.picture("sheet", "http://mlflow/images/sheet.png")
        page.stage("sheet", "done in 3 s")
        assert "| sheet | done in 3 s |" in shown[-1] and "![sheet](http://mlflow/images/sheet.png)" in shown[-1]
        page.done(sample_run(Store(tmp_path / "store")))
    assert "[Download the adapter (.safetensors)](http://mlflow/adapter)" in shown[-1]
    assert "report.html" in shown[-1] and "it is the pick, step" in shown[-1] and "Warning" in shown[-1]
    assert current_page() is None


def test_a_run_that_fails_says_so_on_its_page_and_where_the_traceback_stands(
    workspace: Any, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError), showing("Zorga", "an orc") as page:
        page.begin(workspace, tmp_path)
        raise ValueError("no figure was found")
    assert "**Failed: no figure was found**" in shown[-1]
    [file] = (tmp_path / "home" / "logs").iterdir()
    assert f"`{file}`" in shown[-1] and "ValueError: no figure was found" in file.read_text()


def test_a_mistake_found_before_anything_starts_is_said_on_the_page_too(
    shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError), showing("Zorga", "an orc"):
        raise ValueError("--sheet a.png: not found")
    assert "**Failed: sheet a.png: not found**" in shown[-1] and "being looked at" not in shown[-1]


def test_a_page_is_sent_aside_the_latest_text_wins_and_the_last_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    go_on = threading.Event()

    def slow(self: Any, text: str) -> None:
        go_on.wait(10)
        sent.append(text)

    monkeypatch.setattr(live.LiveText, "show", slow)
    page = live.Aside(live.LiveText("zorga", "Zorga"))
    page.show("first")
    time.sleep(0.2)  # it is being sent
    before = time.monotonic()
    for text in ("second", "third", "last"):
        page.show(text)
    assert time.monotonic() - before < 0.1 and sent == []
    go_on.set()
    page.close()
    assert sent == ["first", "last"]


STEPS = [Progress(step, 10, 0.5, 0.4, 1e-3, 100.0, 65.0, 0.0) for step in (1, 2, 3)]


def followed(monkeypatch: pytest.MonkeyPatch, send: Callable[..., Any]) -> list[str]:
    monkeypatch.setattr(live, "EVERY", 0.05)
    monkeypatch.setattr(live, "create_progress_artifact", send)
    lines: list[str] = []
    training = live.LiveProgress("zorga-training", "Zorga", "training", lines.append)
    with training.following():
        for step in STEPS:
            training.on_step(step)
        time.sleep(0.3)
    return lines


def test_the_latest_step_is_told_once_with_its_loss_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    lines = followed(monkeypatch, lambda **values: sent.append(values))
    assert lines[-1] == "step 3 of 10, loss 0.4000, 1 min 5 s left"
    assert len(lines) <= 2 and [one["progress"] for one in sent] == [30.0, 100.0]


def test_a_sweep_tells_its_pictures_and_the_longest_it_may_still_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.05)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(live, "create_progress_artifact", lambda **values: sent.append(values))
    lines: list[str] = []
    sweep = live.LiveProgress("zorga-sweeping", "Zorga", "sweeping", lines.append)
    with sweep.following():
        time.sleep(0.1)
        sweep._began -= 30  # seconds ago
        sweep.on_drawn(14, 56)
        time.sleep(0.1)
        assert sent[-1]["progress"] == 25.0
    assert lines[0] == "is being prepared, 0 s so far"
    assert lines[-1] == "14 pictures of at most 56, at most 1 min 30 s left"


def test_the_bar_of_work_that_is_made_is_full_and_has_no_time_left_and_of_work_that_stopped_it_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(live, "create_progress_artifact", lambda **values: sent.append(values))
    sweep, training = (live.LiveProgress(f"zorga-{doing}", "Zorga", doing) for doing in ("sweeping", "training"))
    with sweep.following():
        sweep.on_drawn(40, 56)  # a race that was decided early
    with training.following():
        training.on_step(STEPS[-1])
    assert [(one["progress"], one["description"]) for one in sent] == [
        (100.0, "40 pictures drawn"),
        (100.0, "3 steps, loss 0.4000"),
    ]
    stopped = live.LiveProgress("zorga-training", "Zorga", "training")
    with pytest.raises(KeyboardInterrupt), stopped.following():
        stopped.on_step(STEPS[-1])
        raise KeyboardInterrupt
    assert (sent[-1]["progress"], sent[-1]["description"]) == (30.0, "step 3 of 10, loss 0.4000, 1 min 5 s left")


def test_before_the_first_step_it_is_told_what_is_being_prepared_and_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = math.nan
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(live, "EVERY", 0.05)
    monkeypatch.setattr(live, "create_progress_artifact", lambda **values: sent.append(values))
    training = live.LiveProgress("zorga-training", "Zorga", "training")
    with training.following():
        training.on_step(Progress(0, 10, nan, nan, 0.0, 0.0, nan, 0.0, "drawing lessons, 40 % done"))
        time.sleep(0.12)
    assert sent[0]["progress"] == 0.0 and sent[0]["description"] == "drawing lessons, 40 % done"


def test_what_comes_between_two_steps_is_told_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.05)
    monkeypatch.setattr(live, "STILL", 0.1)
    sent: list[str] = []
    monkeypatch.setattr(live, "create_progress_artifact", lambda **values: sent.append(values["description"]))
    training = live.LiveProgress("zorga-training", "Zorga", "training")
    with training.following():
        time.sleep(0.12)
        assert sent and sent[0] == "is being prepared, 0 s so far"  # the bar is there before the first step
        training.on_step(dataclasses.replace(STEPS[-1], doing="validating and keeping a checkpoint"))
        time.sleep(0.08)
        assert sent[-1] == "step 3 of 10, loss 0.4000, 1 min 5 s left"
        assert training._latest is not None
        training._latest = dataclasses.replace(training._latest, when=time.monotonic() - 7)  # seconds ago
        time.sleep(0.12)
        assert sent[-1] == "step 3 of 10, loss 0.4000, 1 min 5 s left; validating and keeping a checkpoint for 7 s"
    assert sent[-1] == "3 steps, loss 0.4000"  # nothing more goes on


def test_pictures_that_are_all_drawn_are_not_told_as_some_of_at_most_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "create_progress_artifact", lambda **values: None)
    lines: list[str] = []
    sweep = live.LiveProgress("zorga-sweeping", "Zorga", "sweeping", lines.append)
    with sweep.following():
        sweep.on_drawn(56, 56)
    assert lines == ["56 pictures drawn"]


def test_a_stage_that_is_taken_from_the_cache_leaves_no_bar_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(live, "create_progress_artifact", lambda **values: sent.append(values))
    with live.LiveProgress("zorga-training", "Zorga", "training").following():
        pass
    assert sent == []


@pytest.mark.parametrize(("cached", "said"), [(False, "done in 12 s"), (True, "unchanged")])
def test_the_page_keeps_how_long_training_and_sweep_took_or_that_nothing_was_done(
    cached: bool, said: str, workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.facts, workspace.on_step, workspace.on_drawn = [], None, None
    lines: dict[str, list[str]] = {"train": [], "sweep": []}
    monkeypatch.setattr(live, "create_progress_artifact", lambda **values: None)
    modules: list[Any] = [train, sweep]
    for stage, module in zip(lines, modules, strict=True):

        def work(*_: Any, stage: str = stage) -> None:
            workspace.facts.append(StageFact(stage=stage, key="a key", cached=cached, seconds=12.3))

        monkeypatch.setattr(module, "as_task", work)
        monkeypatch.setattr(module, "stage_line", lambda stage: lines[stage].append)
        monkeypatch.setattr(module, {"train": "show_training", "sweep": "show_sweep"}[stage], lambda *_: None)
    monkeypatch.setattr(steps, "with_whole_recipe", lambda swept, workspace: "says the whole request")
    modules[0].train_adapter(workspace, None)
    assert modules[1].sweep_adapter(workspace, None, None) == "says the whole request"
    assert [told[-1] for told in lines.values()] == [said, said]


def test_an_artifact_is_changed_over_one_connection_and_over_a_new_one_after_it_was_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clients: list[MagicMock] = []

    def client(**_: Any) -> MagicMock:
        clients.append(MagicMock())
        return clients[-1]

    monkeypatch.setattr(live, "get_client", client)
    artifact = live.LiveArtifact()
    for text in ("made", "changed", "again"):
        artifact.write(uuid4, live.ArtifactUpdate(data=text))
    assert [call.args[1].data for call in clients[0].update_artifact.call_args_list] == ["changed", "again"]
    artifact.close()
    clients[0].__exit__.assert_called_once()
    artifact.write(uuid4, live.ArtifactUpdate(data="more"))
    assert len(clients) == 2


def test_a_prefect_that_is_away_costs_a_training_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(**_: Any) -> None:
        raise ConnectionError("refused")

    followed(monkeypatch, away)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_a_failure_is_told_in_the_words_of_the_form() -> None:
    told = in_form_words("--sheet a.png: not found; --set 'x': write section.key=value; choose another --out")
    assert told == "sheet a.png: not found; overrides 'x': write section.key=value; choose another out"


def test_the_form_checks_names_and_takes_profiles_of_ones_own() -> None:
    import re

    from prefect.utilities.callables import parameter_schema

    from flows.character import character

    form = parameter_schema(character).properties
    patterns = {name: form[name]["pattern"] for name in ("name", "trigger", "profile")}
    good = {"name": ("", "Tin Tom"), "trigger": ("", "ohwx1"), "profile": ("embedded", "sdxl-12gb", "/home/me/my.yaml")}
    bad = {"name": ("a/b", " x"), "trigger": ("Two Words",), "profile": ("nothing",)}
    for name, pattern in patterns.items():
        assert all(re.search(pattern, text) for text in good[name])
        assert not any(re.search(pattern, text) for text in bad[name])
    assert "my.yaml" in form["profile"]["examples"] and form["class_noun"]["maxLength"] == 64


@pytest.mark.parametrize(
    ("parameters", "name"), [({"name": "Aya", "prompt": "an orc"}, "Aya"), ({"prompt": "an orc in blue"}, "orc-blue")]
)
def test_a_run_is_named_after_its_character_also_when_the_name_is_derived(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], name: str
) -> None:
    from flows import character as module

    monkeypatch.setattr(module, "runtime", SimpleNamespace(flow_run=SimpleNamespace(parameters=parameters)))
    assert module.run_name() == name


def test_a_late_thread_tells_an_ending_process_nothing_for_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, line = APILogHandler(), logging.makeLogRecord({})
    monkeypatch.setattr(logging.getLogger("charengine"), "handlers", [handler])
    live.LiveArtifact()
    assert handler.filter(line)
    monkeypatch.setattr(
        threading, "_SHUTTING_DOWN", True
    )  # what Prefect then raises was a traceback in the worker's log
    assert not handler.filter(line)
