"""What a cast may take at once: hours, or a number of characters; and before whom. What is over is left for the next time it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from charengine.errors import BadInput, ConfigError
from charengine.records import RunResult
from charengine.run.cast import MAX_CAST

MOST_HOURS = 8760  # a year
QUEUES = {
    "low": "batch-low",
    "normal": "batch",
    "high": "batch-high",
}  # of the work pool; single characters have another, before all
NAMED = 5  # of those not begun, in one sentence


@dataclass
class Budget:
    """Counts what a cast has taken. Nothing is stopped when it is spent: only no further character is begun.

    Args:
        max_hours: since `began`; 0: no limit.
        max_characters: that are made; those that are taken from the store whole, and those that fail, do not count. 0: no limit.
        began: seconds since 1970; of a batch that is tried again, its first beginning.
        now: the clock, seconds since 1970.

    Raises:
        ConfigError: everything that is out of its limits.
    """

    max_hours: float = 0.0
    max_characters: int = 0
    began: float = 0.0
    now: Callable[[], float] = time.time
    made: int = 0

    def __post_init__(self) -> None:
        limits = (
            ("max_hours", self.max_hours, MOST_HOURS, "hours, e.g. 6.5"),
            ("max_characters", self.max_characters, MAX_CAST, "a whole number, e.g. 20"),
        )
        problems = [
            f"{name}: got {f'{got:g}' if isinstance(got, float) else str(got)[:20]}; allowed is 0 (no limit) to {most}: give {give}"
            for name, got, most, give in limits
            if not 0 <= got <= most
        ]
        if problems:
            raise ConfigError(problems)
        self.began = self.began or self.now()

    @property
    def limits(self) -> bool:
        """Whether there is any."""
        return bool(self.max_hours or self.max_characters)

    @property
    def spent(self) -> str:
        """What is spent, in words; empty while something is left."""
        if self.max_hours and self.now() - self.began >= self.max_hours * 3600:
            return f"the {self.max_hours:g} hours (max_hours) are over"
        if self.max_characters and self.made >= self.max_characters:
            return f"{self.made} characters (max_characters) are made"
        return ""

    def allows(self, under_way: int) -> bool:
        """Whether one more may be begun beside those that are under way."""
        full = self.max_characters and self.made + under_way >= self.max_characters
        return not full and not self.spent

    def count(self, result: RunResult | None) -> None:
        """A character has ended; None: it failed."""
        if result and set(result.seconds) - set(result.cached_stages):
            self.made += 1


def not_begun_said(names: list[str], why: str) -> str:
    """One sentence about those that were not begun, and how to go on; empty for none."""
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"{why}: {len(names)} not begun ({', '.join(names[:NAMED])}{more}). Ask for the same cast again: what is made is "
        "taken from the store, and the others are made."
    )


def queue_of(priority: str) -> str:
    """The queue of a cast's characters.

    Raises:
        BadInput: there is no such priority.
    """
    if priority not in QUEUES:
        raise BadInput(f"priority: got {priority!r}; allowed are {', '.join(QUEUES)}: leave it out for normal")
    return QUEUES[priority]
