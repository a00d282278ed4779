"""What every stage task is to Prefect: a name, a page, and retries where another attempt can help.

The stage itself, its lock, its GPU and what is kept of it are `charengine.run.running.run`: the same outside Prefect. Prefect's own
result cache is not used (docs/decisions/0040-a-stage-is-declared-once.md).
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from charengine.errors import EngineError, StoreCorrupt
from charengine.records import Record, StageFact
from charengine.run.keys import Input
from charengine.run.running import run
from charengine.run.workspace import Workspace
from charengine.stage import Stage
from tasks.page import stage_line

R = TypeVar("R", bound=Record)


class StageTask(Task[..., R]):
    """A task whose call gives the record, also where it ends in a state of its own; Prefect would give that state."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The record, or with `return_state=True` the state."""
        outcome = super().__call__(*args, **kwargs)
        return outcome if kwargs.get("return_state") or not isinstance(outcome, State) else outcome.result()


def stage_task(stage: Stage[R]) -> Task[..., R]:
    """The stage as a Prefect task: called with the workspace and the stage's inputs; a kept result ends it as "Cached"."""

    def body(workspace: Workspace, *inputs: Input) -> Any:
        say = stage_line(stage.name)
        say("is being made")
        result = run(stage, workspace, *inputs)
        say(how(workspace.facts[-1]))
        return Completed(name="Cached", data=result) if workspace.facts[-1].cached else result

    return StageTask(
        body,
        name=stage.name,
        task_run_name=stage.name + "-{workspace.slug}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=exponential_backoff(2),
        retry_condition_fn=should_retry,
    )


@cache
def _task_of(stage: Stage[Any]) -> Task[..., Any]:
    return stage_task(stage)


def as_task(stage: Stage[R], workspace: Workspace, /, *inputs: Input) -> R:
    """Run a stage as its Prefect task (`charengine.run.steps.Runner`)."""
    task: Any = _task_of(stage)
    result: R = task(workspace, *inputs)
    return result


def how(fact: StageFact) -> str:
    """How a stage went, in the words of the run's page."""
    return "unchanged" if fact.cached else f"done in {fact.seconds:.0f} s"


def should_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt can help: what the engine raises on purpose comes again, a lost connection may not.

    A plain function: Prefect silently ignores any other callable here.
    """
    error = state.result(raise_on_failure=False)
    return not isinstance(error, EngineError) or isinstance(error, StoreCorrupt)
