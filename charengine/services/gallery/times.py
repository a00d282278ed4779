"""How long a character will take, by how long earlier ones with the same profile took on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from statistics import median

from charengine.config import Profile
from charengine.records import RunRecord
from charengine.services.estimate import sweep_pictures

NEWEST = 30  # runs that are asked
ALIKE = 2.0  # times as many steps, or as few: a training of ten steps does not say how long one of six hundred takes


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage, from how many runs, and of how many steps where all were much shorter (else 0).

    A training of few steps is mostly its first ones, which are slow; so it says too much.
    """

    stages: dict[str, float]
    runs: int
    shorter: int = 0

    @property
    def seconds(self) -> float:
        """Of one whole character."""
        return sum(self.stages.values())

    @property
    def words(self) -> str:
        """For people."""
        longest = sorted(self.stages.items(), key=lambda item: -item[1])[:3]
        parts = ", ".join(f"{stage} {in_words(seconds)}" for stage, seconds in longest if seconds >= 1)
        came = "one earlier run" if self.runs == 1 else f"{self.runs} earlier runs"
        most, steps = ("at most ", f" of {self.shorter} steps") if self.shorter else ("", "")
        return f"{most}about {in_words(self.seconds)} ({parts}; measured on {came}{steps} with this profile)"


def expected(profile: Profile, runs: Iterable[RunRecord]) -> Estimate | None:
    """What this profile with these settings will take; None when nothing like it was ever made here.

    The training is reckoned by its steps, the sweep by its pictures, every other stage as it was.
    """
    alike, shorter = _nearest(
        [*islice((run for run in runs if run.profile == profile.name), NEWEST)], profile.train.steps
    )
    found: dict[str, list[float]] = {}
    for run in alike:
        for fact in run.stages:
            if not fact.cached:
                found.setdefault(fact.stage, []).append(_again(fact.stage, fact.seconds, run, profile))
    if not profile.expand.count:
        found.pop("expand", None)
    stages = {stage: median(times) for stage, times in found.items()}
    return Estimate(stages, len(alike), shorter) if "train" in stages else None


def _nearest(runs: list[RunRecord], steps: int) -> tuple[list[RunRecord], int]:
    """Runs with about as many training steps, else those that come nearest; and how many these have, if that is too few."""

    def far(run: RunRecord) -> float:
        return abs(math.log(max(1, run.training.steps) / steps))

    near = max(math.log(ALIKE), min(map(far, runs), default=0.0))
    found = [run for run in runs if far(run) <= near]
    most = max((run.training.steps for run in found), default=0)
    return found, most if found and most * ALIKE < steps else 0


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours, as exact as it is useful."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _again(stage: str, seconds: float, run: RunRecord, profile: Profile) -> float:
    """What a stage that took so long will take now."""
    if stage == "train":
        facts, steps = run.training.facts, max(1, run.training.steps)
        a_step = facts.get("stepping_ms", facts.get("step_ms", 1000 * seconds / steps)) / 1000
        around = max(0.0, seconds - a_step * steps)  # loading, checkpoints, samples
        return around + a_step * profile.train.steps
    if stage == "sweep":
        pictures = max(1, sum(cell.images for cell in run.sweep.cells))
        return seconds / pictures * sweep_pictures(profile.sweep, profile.train.checkpoints)
    return seconds
