"""A checked run becomes a workspace: models are found, and a picture to start from is looked at."""

from __future__ import annotations

from charengine.machine.home import Home
from charengine.models import Models
from charengine.run import running
from charengine.run.reference import open_with_reference
from charengine.run.request import CheckedRun
from charengine.run.steps import Runner
from charengine.run.workspace import Workspace


def open_workspace(run: CheckedRun, home: Home, *, models: Models | None = None, by: Runner | None = None) -> Workspace:
    """The workspace of a checked run, every model file found; a reference is looked at, since it may say who is to be made.

    Args:
        run: what was asked for.
        home: where its results are kept.
        models: the profile's, where they are known already.
        by: runs the stage that looks at a reference.

    Raises:
        MissingDependency: a model file is not there.
        BadInput: a model file is not what the profile says, or no character can be made from the reference.
    """
    if run.reference:
        return open_with_reference(run, run.reference, home, models, by or running.run)
    workspace = Workspace(run.character, run.profile, home, refresh=run.refresh, given=run.sheet, models=models)
    _ = workspace.models
    return workspace
