"""What the stages declare beside what they read: who holds the GPU, who can be stopped, who has a smaller plan."""

from __future__ import annotations

from typing import Any

import pytest
from key_samples import INPUTS, PROFILE
from key_values import changed_profile

from charengine.stage import Stage
from charengine.stages.sheet.given import GIVEN_SHEET

STAGES: dict[str, Stage[Any]] = {"given": GIVEN_SHEET, **{name: stage for name, (stage, _) in INPUTS.items()}}
PROFILES = (PROFILE, changed_profile("sheet.ask_model", True), changed_profile("caption.captioner", "wd14"))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_uses_a_model_holds_the_gpu_and_another_does_not(name: str) -> None:
    """Two processes that compute on one GPU run out of its memory; one that only cuts pictures must not wait for it."""
    stage = STAGES[name]
    for profile in PROFILES:
        settings = getattr(profile, stage.settings) if stage.settings else None
        assert stage.gpu is bool(stage.models_for(settings))


def test_what_takes_minutes_can_be_stopped_continues_and_has_a_run_of_its_own() -> None:
    assert [name for name, stage in STAGES.items() if stage.long] == ["train", "sweep"]


def test_training_alone_has_a_smaller_plan() -> None:
    assert [name for name, stage in STAGES.items() if stage.smaller] == ["train"]


def test_a_stage_is_named_as_its_section_of_the_settings() -> None:
    for stage in STAGES.values():
        assert stage.settings in ("", stage.name)
        assert not stage.files or set(stage.files) <= set(type(getattr(PROFILE, stage.settings)).model_fields)
