"""What a stage task is to Prefect: retries where they help, and a state that says whether anything was done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from stage_samples import Model, counted

from charengine.config import Character
from charengine.errors import BadInput, Interrupted, OutOfBudget, SheetRejected
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile
from charengine.records import ReportRecord
from charengine.run.workspace import Workspace
from charengine.stage import Stage
from tasks.stage import stage_task

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture
def workspace(home: Home) -> Workspace:
    grisha = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul")
    made = Workspace(grisha, load_profile("embedded"), home)
    made.__dict__["models"] = SimpleNamespace(diffusion=Model("diffusion"))
    return made


def inside_a_flow(stage: Stage[ReportRecord], workspace: Workspace) -> Any:
    task = stage_task(stage).with_options(retry_delay_seconds=0)
    return flow(lambda: task(workspace, return_state=True), name="under-test")()


def test_a_kept_result_ends_its_task_as_cached_with_the_same_record(workspace: Workspace) -> None:
    stage, calls = counted()
    first, second = inside_a_flow(stage, workspace), inside_a_flow(stage, workspace)
    assert (first.name, second.name) == ("Completed", "Cached")
    assert first.result() == second.result()
    assert len(calls) == 1


def test_a_task_gives_its_record_whether_made_or_kept(workspace: Workspace) -> None:
    stage, _ = counted()
    task = stage_task(stage)
    made, kept = flow(lambda: [task(workspace), task(workspace)], name="under-test")()
    assert isinstance(made, ReportRecord) and made == kept


def test_the_next_task_is_handed_the_kept_record_itself(workspace: Workspace) -> None:
    """Outside the flow a list would do: Prefect takes records out of the states that a flow returns."""
    stage, _ = counted()
    task, seen = stage_task(stage), []
    flow(lambda: seen.extend([task(workspace), task(workspace)]), name="under-test")()
    assert [type(one) for one in seen] == [ReportRecord, ReportRecord]


@pytest.mark.parametrize(
    "error",
    [BadInput("x"), SheetRejected("x"), OutOfBudget("x"), Interrupted("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_comes_again_is_not_tried_again(workspace: Workspace, error: Exception) -> None:
    stage, calls = counted([error])
    with pytest.raises(type(error)):
        inside_a_flow(stage, workspace).result()
    assert len(calls) == 1


def test_what_may_pass_is_tried_twice_more(workspace: Workspace) -> None:
    stage, calls = counted([ConnectionError("lost"), OSError("lost")])
    inside_a_flow(stage, workspace).result()
    assert len(calls) == 3
