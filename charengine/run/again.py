"""A run that was made before, asked for again: like `make`, it is looked whether there is anything to do, before any server is reached.

The stages are gone through as a flow goes through them (charengine/run/making.py), by `running.kept`, which gives what is kept and
makes nothing. Whatever is not plainly as that run left it is the flow's: it makes, mends, waits, tells and complains.
Nothing here imports torch, Prefect or MLflow.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from charengine import files
from charengine.errors import EngineError
from charengine.machine.home import Home
from charengine.machine.locks import if_free, reach_other_machines
from charengine.records import RunRecord, RunResult
from charengine.run import folder
from charengine.run.claim import claimed
from charengine.run.outputs import check_run
from charengine.run.request import CheckedRun

if TYPE_CHECKING:
    from charengine.run.workspace import Workspace

UNCHANGED = "everything is unchanged: nothing was made, and nothing new is recorded in Prefect or MLflow"

log = logging.getLogger(__name__)


class ToDo(Exception):
    """There is something to do, to tell, or to wait for."""


def made_before(run: CheckedRun, home: Home) -> RunResult | None:
    """What a run whose every stage is kept made when it was made, its folder whole; None where there may be anything to do.

    What its folder lacks is written; Prefect's and MLflow's ids are of the run that its record tells of.

    Args:
        run: what is asked for.
        home: where results are kept.
    """
    if run.refresh or not files.is_file(run.out / folder.RESULT) or reach_other_machines():
        return None
    try:
        earlier = folder.read_run(run.out)
    except EngineError:
        return None
    return None if _asks_for_other(run, earlier) else _looked_for(run, home, earlier)


def _looked_for(run: CheckedRun, home: Home, earlier: RunRecord) -> RunResult | None:
    # only here: who has something to make need not wait for these before its server starts
    from charengine.models import known
    from charengine.run.opening import open_workspace
    from charengine.run.result import seconds_of
    from charengine.run.running import NotKept, kept

    try:
        models = known(run.profile)
        if models is None:
            return None
        workspace = open_workspace(run, home, models=models, by=kept)
        result = _taken(run, workspace, earlier)
    except (NotKept, ToDo, EngineError, OSError):  # the flow finds it too, and does or says what is to be done or said
        return None
    log.info("%s", UNCHANGED)
    seconds = {stage: round(took, 3) for stage, took in seconds_of(workspace.facts).items()}
    return result.model_copy(update={"cached_stages": tuple(seconds), "seconds": seconds})


def _taken(run: CheckedRun, workspace: Workspace, earlier: RunRecord) -> RunResult:
    """The earlier run's own result, its folder as it was when that was written.

    Raises:
        NotKept: a stage would have to work.
        ToDo: something else is to be done.
        EngineError: something is in the way.
    """
    from charengine.run.making import make_character, steps_by
    from charengine.run.running import kept
    from charengine.tracking.told import is_told

    check_run(run, workspace.character)
    with if_free(workspace.home.locks / f"{workspace.key}.lock", make=True) as alone:
        told = is_told(workspace.home, earlier.mlflow_run_id or "", workspace.key)
        if not (alone and told and workspace.store.has_result(workspace.key)):
            raise ToDo
        with claimed(run) as own:
            if own.out != run.out:
                raise ToDo
            return make_character(workspace, own.out, steps_by(kept, lambda made: _same(made, earlier)))


def _asks_for_other(run: CheckedRun, earlier: RunRecord) -> bool:
    """Whether it can be told at once that the folder's run is another one; settings of a training may be a second attempt's."""
    asked = run.profile.model_dump(mode="json", exclude={"train"})
    made = earlier.config.get("profile")
    made = {name: value for name, value in made.items() if name != "train"} if isinstance(made, dict) else made
    return earlier.seed != run.character.seed or made != asked


def _same(made: RunRecord, earlier: RunRecord) -> RunRecord:
    """The earlier record, if it tells of the same stages and what they made, as every file of the folder then does.

    Raises:
        ToDo: it tells of others.
    """
    who = {name: getattr(earlier, name) for name in RunRecord.provenance}
    keys = [[(fact.stage, fact.key) for fact in record.stages] for record in (made, earlier)]
    if keys[0] != keys[1] or made.model_copy(update=who).model_dump_json() != earlier.model_dump_json():
        raise ToDo
    return earlier
