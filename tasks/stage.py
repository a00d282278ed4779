"""What every stage task has on the outside: a key decided beforehand, one process at a time, retries, a verified cache.

The cache policy looks at the `key` argument alone. Prefect's own policies were tried and gave wrong results: they miss a
changed file behind a path and a changed function behind a task, and two tasks with equal arguments share a result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from prefect import Task, task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff

from charengine.errors import EngineError, StoreCorrupt
from charengine.machine.locks import gpu_slot, single_flight
from charengine.records import Record, StageFact
from charengine.run.workspace import Workspace, peak_rss_gib
from charengine.store import refs_in

log = logging.getLogger("charengine.tasks")
R = TypeVar("R", bound=Record)


def stage_task(name: str) -> Callable[[Callable[..., R]], Task[..., R]]:
    """`@task` as every stage wants it; the body takes `key` and the workspace first."""

    def decorate(body: Callable[..., R]) -> Task[..., R]:
        made = task(
            name=name,
            task_run_name=name + "-{workspace.slug}",
            cache_policy=CacheKeyFnPolicy(cache_key_fn=_given_key),
            persist_result=True,
            result_serializer="json",
            retries=2,
            retry_delay_seconds=exponential_backoff(2),
            retry_condition_fn=should_retry,
        )(body)
        return cast("Task[..., R]", made)

    return decorate


def _given_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    return str(parameters["key"])


def should_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt can help: what the engine raises on purpose comes again, a lost connection may not.

    A plain function: Prefect silently ignores any other callable here.
    """
    error = state.result(raise_on_failure=False)
    return not isinstance(error, EngineError) or isinstance(error, StoreCorrupt)


def run_stage(stage: Task[..., R], key: str, workspace: Workspace, *inputs: Any, on_gpu: bool = False) -> R:
    """Run a stage, or take its result from the cache when every blob it refers to is still whole.

    Args:
        stage: the task.
        key: its stage key.
        workspace: the run's workspace; gets the stage's fact.
        inputs: what the stage takes besides.
        on_gpu: hold the GPU meanwhile.
    """
    started = time.monotonic()
    with single_flight(workspace.home.locks / f"{key}.lock", f"{stage.name} of {workspace.slug} is being made there"):
        refresh = stage.name in workspace.refresh
        result, cached = _attempt(stage, key, workspace, inputs, on_gpu, refresh)
        if cached and (lost := [ref for ref in refs_in(result) if not workspace.store.has(ref)]):
            log.warning("%s: %d cached files are gone or changed (%s); running it again", key, len(lost), lost[0].name)
            for ref in lost:
                workspace.store.drop(ref)
            result, cached = _attempt(stage, key, workspace, inputs, on_gpu, refresh=True)
    seconds = time.monotonic() - started
    workspace.note(StageFact(stage=stage.name, key=key, cached=cached, seconds=seconds, peak_rss_gib=peak_rss_gib()))
    return result


def _attempt(
    stage: Task[..., R], key: str, workspace: Workspace, inputs: tuple[Any, ...], on_gpu: bool, refresh: bool
) -> tuple[R, bool]:
    """The result, and whether it came from the cache."""
    chosen = stage.with_options(refresh_cache=True) if refresh else stage
    device = workspace.models.diffusion.device if on_gpu else None
    with gpu_slot(workspace.home.locks, device):
        state: State[R] = chosen(key, workspace, *inputs, return_state=True)  # type: ignore[assignment]
    return cast("R", state.result()), state.name == "Cached"
