"""How long a character will take, by how long earlier ones with the same profile took on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from charengine.config import Profile
from charengine.records import RunRecord
from charengine.services.estimate import sweep_pictures

NEWEST = 30  # runs that are asked


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage, and from how many runs."""

    stages: dict[str, float]
    runs: int

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
        return f"about {in_words(self.seconds)} ({parts}; measured on {came} with this profile)"


def expected(profile: Profile, runs: Iterable[RunRecord]) -> Estimate | None:
    """What this profile with these settings will take; None when nothing like it was ever made here.

    The training is reckoned by its steps, the sweep by its pictures, every other stage as it was.
    """
    alike = [run for run in runs if run.profile == profile.name][:NEWEST]
    found: dict[str, list[float]] = {}
    for run in alike:
        for fact in run.stages:
            if not fact.cached:
                found.setdefault(fact.stage, []).append(_again(fact.stage, fact.seconds, run, profile))
    if not profile.expand.count:
        found.pop("expand", None)
    stages = {stage: median(times) for stage, times in found.items()}
    return Estimate(stages, len(alike)) if "train" in stages else None


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours, as exact as it is useful."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _again(stage: str, seconds: float, run: RunRecord, profile: Profile) -> float:
    """What a stage that took so long will take now."""
    if stage == "train":
        a_step = run.training.facts.get("step_ms", 1000 * seconds / max(1, run.training.steps)) / 1000
        around = max(0.0, seconds - a_step * run.training.steps)  # loading, checkpoints, samples
        return around + a_step * profile.train.steps
    if stage == "sweep":
        pictures = max(1, sum(cell.images for cell in run.sweep.cells))
        return seconds / pictures * sweep_pictures(profile.sweep, profile.train.checkpoints)
    return seconds
