"""What MLflow does not take is written down, and told by the next run that reaches it, or by `charengine up`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from charengine.tracking.journal import Journal, JournalTracker

T = TypeVar("T")


class Postponing:
    """How a run tells MLflow: now, or from the first refusal on by a journal, so that the order of what it is told stays."""

    _connection: Any  # to MLflow
    _name: str
    _key: str
    _parent: Postponing | None
    _delivers: bool  # a journal is being delivered: nothing is postponed again
    _postponed: JournalTracker | None

    def _tell(self, what: str, call: Callable[[], T], instead: Callable[[JournalTracker], object]) -> T | None:
        """Tell MLflow; what it does not take, and from then on everything, is written down and delivered by a later run."""
        if self._postponed:
            instead(self._postponed)
            return None

        def later() -> None:
            if not self._delivers:
                instead(self._later())

        answer: T | None = self._connection.attempt(what, call, otherwise=later)
        return answer

    def _send(self, what: str, job: Callable[[], object], instead: Callable[[JournalTracker], object]) -> None:
        """The same, in the background."""
        if self._postponed or self._delivers:
            self._tell(what, job, instead)
        else:
            self._connection.spool.submit(what, job, lambda: instead(self._later()))

    def _later(self) -> JournalTracker:
        """What MLflow is told later."""
        if self._postponed is None:
            journal, parent = Journal(self._connection.journal), self._parent
            above = (parent._name, parent._key) if parent else None
            self._postponed = JournalTracker(journal, self._name, self._key, above, {}, {})
        return self._postponed
