"""A name that does not exist: what was received under it, and the known one that it is nearest to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

LONGEST_VALUE = 100  # characters of what was received
NUMBER = re.compile(r"[-+]?[\d._]+(e[-+]?\d+)?", re.IGNORECASE)
NO_SETTING = "there is no such setting"  # in a problem that is about a name, not a value


def no_such(place: str, value: str, what: str = "field", more: str = "", number: str = "") -> str:
    """The line about a name that does not exist; `more` is what was meant and where all are listed."""
    return f"{place[:80]}: got {value}{number}, but there is no such {what}{more}"


def shown_value(given: Any) -> str:
    """A value as it was received, cut where it is long; text stands in quotes unless it is a number."""
    value = given if isinstance(given, str) and NUMBER.fullmatch(given) else repr(given)
    return value if len(value) < LONGEST_VALUE else value[: LONGEST_VALUE - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that a misspelt one is nearest to, in whatever case; "" where none is near."""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word[:80].lower(), list(lower), n=1, cutoff=0.5)
    return lower[close[0]] if close else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean steps?`, or nothing where no known word is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""
