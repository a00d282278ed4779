"""Training again as the sweep's verdict says: longer where an adapter looks undertrained, more slowly where it looks overfit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from charengine.config import TrainSettings
from charengine.records import AdapterRecord, SweepRecord, Verdict
from charengine.run.workspace import Workspace

log = logging.getLogger(__name__)

MOST_STEPS: int = next(limit.le for limit in TrainSettings.model_fields["steps"].metadata if hasattr(limit, "le"))


class Attempt(NamedTuple):
    """A training with its sweep, and the workspace whose settings it had."""

    workspace: Workspace
    training: AdapterRecord
    sweep: SweepRecord

    @property
    def score(self) -> float:
        """Of the pick; scores of one character are all on the scale from the base model to the sheet."""
        return self.sweep.pick.metrics.score


def until_right(workspace: Workspace, attempt: Callable[[Workspace], Attempt]) -> Attempt:
    """The first attempt whose verdict is "right", or the best by its pick's score of `retrain` more.

    Args:
        workspace: whose profile says how often training is tried again.
        attempt: trains and sweeps with a workspace's settings.

    Returns:
        The attempt that is kept; where there were several, a warning of its training says which.
    """
    attempts = [attempt(workspace)]
    while len(attempts) <= workspace.profile.retrain:
        last = attempts[-1]
        settings = settings_after(last.sweep.verdict, last.workspace.profile.train)
        if settings is None or any(settings == one.workspace.profile.train for one in attempts):
            break
        log.info("%s Training again with %s", last.sweep.verdict and last.sweep.verdict.line, _said(settings))
        attempts.append(attempt(last.workspace.with_training(settings)))
    best = max(attempts, key=lambda one: one.score)  # the earliest of equals
    if len(attempts) == 1:
        return best
    tried = "; ".join(
        f"{_said(one.workspace.profile.train)}: {one.score:.2f}, {one.sweep.verdict.kind if one.sweep.verdict else 'not judged'}"
        for one in attempts
    )
    told = f"trained {len(attempts)} times, as the verdicts said, and kept the best pick by its score ({tried})"
    return best._replace(training=best.training.model_copy(update={"warnings": (*best.training.warnings, told)}))


def settings_after(verdict: Verdict | None, settings: TrainSettings) -> TrainSettings | None:
    """What a verdict says to train with next; None where it says that nothing is to be done."""
    if verdict is None or verdict.kind == "right":
        return None
    if verdict.kind == "over":
        return settings.model_copy(update={"learning_rate": settings.learning_rate / 2})
    longer = settings.model_copy(update={"steps": min(2 * settings.steps, MOST_STEPS)})
    return longer if longer.steps > settings.steps else None


def _said(settings: TrainSettings) -> str:
    return f"train.steps={settings.steps} train.learning_rate={settings.learning_rate:g}"
