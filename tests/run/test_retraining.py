"""Training again as the verdict says: how often, with what, and which attempt is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_samples import sample_run

from charengine.config import Character, Profile, TrainSettings
from charengine.machine.home import Home
from charengine.records import StageFact, Verdict
from charengine.run.keys import stage_key
from charengine.run.retraining import MOST_STEPS, Attempt, settings_after, until_right
from charengine.run.workspace import Workspace
from charengine.stages.crop import CROP
from charengine.stages.train.stage import TRAIN
from charengine.store import Store

UNDER, OVER, RIGHT = (Verdict(kind=kind, line=f"Looks {kind}.") for kind in ("under", "over", "right"))  # type: ignore[arg-type]


class Studio:
    """Attempts whose verdicts and scores are given beforehand."""

    def __init__(self, tmp_path: Path, retrain: int, *ends: tuple[Verdict | None, float]) -> None:
        self.run, self.ends = sample_run(Store(tmp_path / "store")), list(ends)
        self.tried: list[tuple[int, float]] = []
        profile = Profile(name="sample", retrain=retrain, train=TrainSettings(steps=300, learning_rate=0.002))
        self.workspace: Any = self.with_profile(profile)

    def with_profile(self, profile: Profile) -> Any:
        def with_training(settings: TrainSettings) -> Any:
            return self.with_profile(profile.model_copy(update={"train": settings}))

        return SimpleNamespace(profile=profile, with_training=with_training)

    def attempt(self, workspace: Any) -> Attempt:
        settings, (verdict, score) = workspace.profile.train, self.ends.pop(0)
        self.tried.append((settings.steps, settings.learning_rate))
        metrics = self.run.sweep.pick.metrics.model_copy(update={"score": score})
        pick = self.run.sweep.pick.model_copy(update={"metrics": metrics})
        swept = self.run.sweep.model_copy(update={"pick": pick, "verdict": verdict})
        return Attempt(workspace, self.run.training.model_copy(update={"steps": settings.steps}), swept)

    def kept(self) -> Attempt:
        return until_right(self.workspace, self.attempt)


@pytest.mark.parametrize(
    ("retrain", "ends", "tried"),
    [
        (0, [(UNDER, 0.5)], [(300, 0.002)]),
        (3, [(RIGHT, 0.5)], [(300, 0.002)]),
        (3, [(None, 0.5)], [(300, 0.002)]),
        (1, [(UNDER, 0.5), (UNDER, 0.6)], [(300, 0.002), (600, 0.002)]),
        (3, [(UNDER, 0.5), (OVER, 0.6), (RIGHT, 0.7)], [(300, 0.002), (600, 0.002), (600, 0.001)]),
        (2, [(OVER, 0.5), (OVER, 0.6), (OVER, 0.7)], [(300, 0.002), (300, 0.001), (300, 0.0005)]),
    ],
)
def test_it_is_tried_again_as_the_last_verdict_says_and_no_oftener_than_asked(
    retrain: int, ends: Any, tried: Any, tmp_path: Path
) -> None:
    studio = Studio(tmp_path, retrain, *ends)
    kept = studio.kept()
    assert studio.tried == tried and not studio.ends
    assert kept.training.steps == tried[-1][0]
    assert kept.workspace.profile.train.learning_rate == tried[-1][1]
    assert sum("trained" in warning for warning in kept.training.warnings) == (len(tried) > 1)


def test_the_attempt_with_the_best_pick_is_kept_and_all_are_told(tmp_path: Path) -> None:
    studio = Studio(tmp_path, 2, (UNDER, 0.61), (OVER, 0.72), (RIGHT, 0.68))
    kept = studio.kept()
    assert (kept.training.steps, kept.score) == (600, 0.72)
    assert kept.workspace.profile.train.steps == 600 and kept.sweep.verdict == OVER
    (told,) = [warning for warning in kept.training.warnings if "3 times" in warning]
    assert "train.steps=300 train.learning_rate=0.002: 0.61, under" in told
    assert "train.steps=600 train.learning_rate=0.001: 0.68, right" in told


def test_of_equal_picks_the_shorter_training_is_kept(tmp_path: Path) -> None:
    assert Studio(tmp_path, 1, (UNDER, 0.6), (RIGHT, 0.6)).kept().training.steps == 300


def test_no_training_is_longer_than_a_setting_may_say() -> None:
    assert settings_after(UNDER, TrainSettings(steps=60_000)) == TrainSettings(steps=MOST_STEPS)
    assert settings_after(UNDER, TrainSettings(steps=MOST_STEPS)) is None
    with pytest.raises(ValueError, match=f"less than or equal to {MOST_STEPS}"):
        TrainSettings(steps=MOST_STEPS + 1)


def test_another_training_of_a_run_is_the_one_that_a_user_would_have_asked_for(tmp_path: Path) -> None:
    """So that the same settings asked for by hand are taken from the cache; all but the training is shared."""
    character = Character(name="Aya", prompt="an orc", seed=7)
    home, longer = Home(tmp_path), TrainSettings(steps=600)
    asked, again = (
        Workspace(character, Profile(name="sample", train=train), home) for train in (longer, TrainSettings())
    )
    other = again.with_training(longer)
    again.note(StageFact(stage="train", key="train-1", cached=False, seconds=1.0))
    assert other.facts is again.facts and other.models is again.models and other.tracker is again.tracker

    def key(stage: Any, workspace: Workspace) -> str:
        return stage_key(stage, workspace.character, workspace.profile, workspace.models, ())

    assert key(TRAIN, other) == key(TRAIN, asked) != key(TRAIN, again)
    assert key(CROP, other) == key(CROP, again)
    assert other.recipe()["profile"]["train"]["steps"] == 600 and again.profile.train.steps != 600


def test_a_profile_that_asks_for_no_further_training_is_written_as_before() -> None:
    assert "retrain" not in Profile(name="sample").model_dump()
    assert Profile(name="sample", retrain=2).model_dump()["retrain"] == 2
