"""What a cast may take at once: limits are checked, hours and new characters counted, and what is left is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from charengine.errors import ConfigError
from charengine.records import RunResult
from charengine.run.budget import Budget, not_begun_said


def result(cached: tuple[str, ...]) -> RunResult:
    paths = dict.fromkeys(("sheet", "adapter", "recommended_adapter", "report"), Path("x"))
    more = {"views": (), "captions": (), "warnings": (), "seconds": {"sheet": 1.0, "train": 2.0}}
    numbers = {"checkpoint_step": 3, "strength": 0.5, "mlflow_run_id": None, "prefect_flow_run_id": None}
    words = {"name": "Aya", "trigger": "ohw", "recommended_prompt": "ohw orc", "cached_stages": cached}
    return RunResult.model_validate({**paths, **more, **numbers, **words})


def test_every_limit_that_cannot_be_is_told_with_what_may() -> None:
    with pytest.raises(ConfigError) as caught:
        Budget(max_hours=float("nan"), max_characters=-1)
    hours, characters = caught.value.problems
    assert hours == "max_hours: got nan; allowed is 0 (no limit) to 8760: give hours, e.g. 6.5"
    assert characters.startswith("max_characters: got -1; allowed is 0 (no limit) to 10000")
    for wrong in (-1.0, 8761.0, float("inf")):
        with pytest.raises(ConfigError):
            Budget(max_hours=wrong)


def test_hours_count_from_the_first_beginning() -> None:
    clock = [1000.0]
    budget = Budget(max_hours=1, now=lambda: clock[0])
    assert budget.began == 1000.0 and budget.allows(23)
    clock[0] += 3599
    assert budget.allows(0) and budget.spent == ""
    clock[0] += 1
    assert not budget.allows(0) and budget.spent == "the 1 hours (max_hours) are over"
    assert not Budget(max_hours=1, began=1000.0, now=lambda: clock[0]).allows(0)


def test_never_more_are_made_than_was_said_and_those_made_before_or_failed_do_not_count() -> None:
    budget = Budget(max_characters=2)
    assert budget.allows(1) and not budget.allows(2)
    budget.count(result(("sheet", "train")))
    budget.count(None)
    assert budget.allows(1) and budget.made == 0
    budget.count(result(("sheet",)))
    assert budget.allows(0) and not budget.allows(1)
    budget.count(result(()))
    assert not budget.allows(0) and budget.spent == "2 characters (max_characters) are made"


def test_without_a_limit_nothing_is_ever_spent() -> None:
    budget = Budget(now=lambda: 1e12, began=1.0)
    budget.count(result(()))
    assert budget.allows(10_000) and not budget.limits and budget.spent == ""


def test_what_is_left_is_named_and_how_to_go_on() -> None:
    assert not_begun_said([], "spent") == ""
    said = not_begun_said([f"C{number}" for number in range(7)], "spent")
    assert said.startswith("spent: 7 not begun (C0, C1, C2, C3, C4 and 2 more). Ask for the same cast again")
