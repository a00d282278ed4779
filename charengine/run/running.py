"""Running a stage: the one function that tasks, commands and notebooks all call.

One process at a time a key; a result that is kept and whole is taken; else the GPU is held, the work done with what the stage
declares, its result kept, the models freed, and how it went noted.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from charengine import files
from charengine.config import Settings
from charengine.errors import OutOfBudget, ran_out_of_memory
from charengine.machine.interrupts import run_stoppable
from charengine.machine.locks import gpu_slot, single_flight
from charengine.machine.threads import usual_threads, working_threads
from charengine.records import Record, Ref, StageFact
from charengine.run.keys import Input, stage_key, stage_recipe
from charengine.run.unchanged import Unchanged
from charengine.run.workspace import Workspace
from charengine.stage import Given, Stage, only_character, only_models
from charengine.store import Store, refs_in
from charengine.tracking.protocol import NullTracker, closing
from charengine.tracking.views import KIND_TAG

R = TypeVar("R", bound=Record)
log = logging.getLogger(__name__)


def run(stage: Stage[R], workspace: Workspace, *inputs: Input) -> R:
    """What the stage makes of its inputs: made now, or taken from the store when it is there and whole.

    Args:
        stage: its declaration.
        workspace: whose character, settings and models; how it went is added to its facts.
        inputs: records of the stages before, or files that count by content.

    Raises:
        EngineError: what the work raises.
    """
    key = key_of(stage, workspace, *inputs)
    started = time.monotonic()
    workspace.store.use(*(fact.key for fact in workspace.facts))  # `prune` leaves what this run has made or taken
    waiting_for = f"{stage.name} of {workspace.character.name} is being made there"
    with single_flight(workspace.home.locks / f"{key}.lock", waiting_for):
        found = None if stage.name in workspace.refresh else _kept(stage, key, workspace)
        workspace.store.use(key)
        result = _made(stage, key, workspace, inputs) if found is None else found
        _forget_progress(key, workspace)
    seconds = time.monotonic() - started
    workspace.note(
        StageFact(stage=stage.name, key=key, cached=found is not None, seconds=seconds, peak_rss_gib=peak_rss_gib())
    )
    return result


class NotKept(Exception):
    """A stage would have to work, or something of it to be put in order: `run` does that."""


def kept(stage: Stage[R], workspace: Workspace, *inputs: Input) -> R:
    """What the stage made of the same inputs before; nothing is made, mended or waited for. The facts note it, the log does not.

    Raises:
        NotKept: it is not there, not whole, to be made anew, or somebody may be at work under its key.
    """
    key = key_of(stage, workspace, *inputs)
    started = time.monotonic()
    found = None if stage.name in workspace.refresh else workspace.store.result(key, stage.makes)
    if found is None or lost_files(found, workspace.store) or _has_progress(key, workspace):
        raise NotKept(key)
    workspace.store.use(*(fact.key for fact in workspace.facts), key)
    workspace.facts.append(
        StageFact(
            stage=stage.name,
            key=key,
            cached=True,
            seconds=time.monotonic() - started,
            peak_rss_gib=peak_rss_gib(),
        )
    )
    return found


def key_of(stage: Stage[Any], workspace: Workspace, *inputs: Input) -> str:
    """The key under which `run` keeps the result of the same call."""
    return stage_key(stage, workspace.character, workspace.profile, workspace.models, inputs)


def _kept(stage: Stage[R], key: str, workspace: Workspace) -> R | None:
    """The result under this key, if all its files are still whole."""
    found = workspace.store.result(key, stage.makes)
    lost = lost_files(found, workspace.store)
    if not lost:
        return found
    log.warning("%s: %d kept files are gone or changed (%s); running it again", key, len(lost), lost[0].name)
    for ref in lost:
        workspace.store.drop(ref)
    return None


def lost_files(found: Record | None, store: Store) -> list[Ref]:
    """The files of a kept result that are gone or changed."""
    return [ref for ref in refs_in(found) if not store.has(ref)]


def _made(stage: Stage[R], key: str, workspace: Workspace, inputs: tuple[Input, ...]) -> R:
    """The work done, its result kept the moment it is there: what comes after (closing, freeing, a stop) cannot lose it."""
    settings = getattr(workspace.profile, stage.settings) if stage.settings else None
    if stage.name in workspace.refresh:
        _forget_progress(key, workspace)
    unchanged = Unchanged(stage, workspace, inputs, key)
    given = Given(
        stage=stage,
        character=only_character(workspace.character, stage),
        settings=settings,
        models=only_models(workspace.models, stage, settings),
        store=workspace.store,
        tracker=NullTracker(),
        recipe=stage_recipe(stage, workspace.character, workspace.profile, workspace.models),
        key=key,
        on_step=workspace.on_step,
        on_drawn=workspace.on_drawn,
        files_read=unchanged,
    )
    models = [getattr(workspace.models, name) for name in stage.models_for(settings)]

    def keep(result: R) -> R:
        unchanged.at_last()
        workspace.store.put_result(key, result)
        return result

    try:
        with ExitStack() as stack:
            stack.enter_context(
                gpu_slot(workspace.home.locks, workspace.models.diffusion.device if stage.gpu else None)
            )
            unchanged.before()  # the lock and the GPU may have been waited for
            stack.enter_context(working_threads(usual_threads(workspace.profile.models.family)))
            if stage.long:
                for state in (_state(key, workspace), _smaller(_state(key, workspace))):
                    workspace.store.take_state(state)
                return _made_stoppably(replace(given, state=_state(key, workspace)), workspace, inputs, keep)
            return keep(stage.work(given, *inputs))
    finally:
        for model in models:
            model.unload()


def _made_stoppably(given: Given, workspace: Workspace, inputs: tuple[Input, ...], keep: Callable[[Any], R]) -> R:
    """Long work: in an MLflow run of its own, stopped at its next step when asked to."""
    stage = given.stage
    tags = {KIND_TAG: stage.name}
    tracker = workspace.tracker.child(
        stage.name, key=given.key, params=given.settings.params(stage.settings), tags=tags
    )
    tracked = replace(given, tracker=tracker)

    def made(stop: Callable[[], bool]) -> R:
        result = _within_memory(replace(tracked, should_stop=stop), inputs)
        tracker.sync()  # a result that is kept is never made again, nor told again
        return keep(result)

    with closing(tracker):
        return run_stoppable(made)


def _state(key: str, workspace: Workspace) -> Path:
    """Where long work under a key keeps its state."""
    return workspace.home.state / key


def _forget_progress(key: str, workspace: Workspace) -> None:
    """Drop what unfinished work under a key has kept: it is finished, or begun anew."""
    for state in (_state(key, workspace), _smaller(_state(key, workspace))):
        workspace.store.drop_state(state)
    workspace.store.drop_parts(key)


def _has_progress(key: str, workspace: Workspace) -> bool:
    """Whether unfinished work under a key has left something, or leaves it now."""
    states = (_state(key, workspace), _smaller(_state(key, workspace)))
    return any(map(files.exists, states)) or workspace.store.has_parts(key)


def _smaller(state: Path) -> Path:
    """Where the same work keeps its state with a smaller plan."""
    return state.with_name(f"{state.name}-smaller")


def _within_memory(given: Given, inputs: tuple[Input, ...]) -> Any:
    """The work; when memory runs out, once more with the stage's smaller settings, which its warnings say."""
    stage, settings = given.stage, given.settings
    try:
        return stage.work(given, *inputs)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        smaller = stage.smaller(settings, *inputs) if stage.smaller else None
        if smaller is None:
            raise OutOfBudget(f"{stage.name} ran out of memory with the smallest plan there is: {error}") from error
    for name in stage.models_for(settings):
        getattr(given.models, name).unload()
    changed = _difference(settings, smaller)
    told = f"{stage.name} ran out of memory and went on with {', '.join(f'{name}={changed[name]}' for name in changed)}"
    log.warning(told)
    given.tracker.set_tags({"charengine.fallback": told})
    assert given.state is not None
    recipe = {**given.recipe, "went_on_with": {stage.settings: changed}}
    result = stage.work(replace(given, settings=smaller, recipe=recipe, state=_smaller(given.state)), *inputs)
    return result.model_copy(update={"warnings": (*result.warnings, told)})


def _difference(settings: Settings, smaller: Settings) -> dict[str, Any]:
    """The settings that changed, by name."""
    before, after = settings.model_dump(mode="json"), smaller.model_dump(mode="json")
    return {name: value for name, value in after.items() if value != before[name]}


def peak_rss_gib() -> float | None:
    """Highest resident memory of this process so far, GiB; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
