"""What a cast may take at once: limits are checked, hours and new characters counted, and what is left is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from charengine.errors import ConfigError
from charengine.run.budget import Budget, not_begun_said


def result(*cached: str) -> Any:
    return SimpleNamespace(seconds={"sheet": 1.0, "train": 2.0}, cached_stages=cached)


@pytest.mark.parametrize("hours", [float("nan"), float("inf"), -1.0, 8761.0])
def test_every_limit_that_cannot_be_is_told_with_what_may(hours: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Budget(hours, max_characters=-1)
    first, second = caught.value.problems
    assert first == f"max_hours: got {hours:g}; allowed is 0 (no limit) to 8760: give hours, e.g. 6.5"
    assert second.startswith("max_characters: got -1; allowed is 0 (no limit) to 10000")


def test_a_number_of_characters_that_no_float_holds_is_refused_as_any_other() -> None:
    with pytest.raises(ConfigError, match=r"max_characters: got 99999999999999999999; allowed is 0"):
        Budget(max_characters=int("9" * 400))


def test_hours_count_from_the_first_beginning() -> None:
    clock = [1000.0]
    budget = Budget(max_hours=1, now=lambda: clock[0])
    clock[0] += 3599
    assert budget.allows(23) and budget.spent == ""
    clock[0] += 1
    assert not budget.allows(0) and budget.spent == "the 1 hours (max_hours) are over"


def test_never_more_are_made_than_was_said_and_those_made_before_or_failed_do_not_count() -> None:
    budget = Budget(max_characters=2)
    budget.count(result("sheet", "train"))
    budget.count(None)
    assert budget.allows(1) and not budget.allows(2)
    budget.count(result("sheet"))
    assert budget.allows(0) and not budget.allows(1)
    budget.count(result())
    assert not budget.allows(0) and budget.spent == "2 characters (max_characters) are made"


def test_what_is_left_is_named_and_how_to_go_on() -> None:
    said = not_begun_said([f"C{number}" for number in range(7)], "spent")
    assert said.startswith("spent: 7 not begun (C0, C1, C2, C3, C4 and 2 more). Ask for the same cast again")
