"""Tracking: the `Tracker` protocol, a tracker that records nothing, and MLflow (imported only here, lazily).

A tracker is one open run. Stages log to the run they are given and open children by stage key; a child whose key was
already started is reopened, never duplicated, and knows the last step it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """One open run of an experiment."""

    run_id: str | None

    def child(
        self,
        name: str,
        *,
        key: str,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Tracker:
        """The child run tagged with this stage key: reopened if it exists, else started."""
        ...

    def last_step(self, metric: str = "train/loss") -> int:
        """Highest step already logged for a metric; -1 when there is none."""
        ...

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters, once."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; may change."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffered and sent in the background; steps not above `last_step` are skipped; never blocks, never raises."""
        ...

    def log_image(self, image: Image, name: str, step: int | None = None) -> None:
        """A picture under `name` (PNG)."""
        ...

    def log_bytes(self, data: bytes, name: str) -> None:
        """A file artifact."""
        ...

    def log_checkpoint(self, adapter: bytes, step: int, metrics: Mapping[str, float]) -> str | None:
        """An adapter as a logged model; its id."""
        ...

    def finish(self, status: Status = "FINISHED") -> None:
        """Flush and close the run."""
        ...


class NullTracker:
    """Records nothing; what the engine uses when nobody is watching."""

    run_id: str | None = None

    def child(
        self,
        name: str,
        *,
        key: str,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> NullTracker:
        """Itself."""
        return self

    def last_step(self, metric: str = "train/loss") -> int:
        """-1: nothing was logged."""
        return -1

    def log_params(self, params: Mapping[str, object]) -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_image(self, image: Image, name: str, step: int | None = None) -> None:
        """Nothing."""

    def log_bytes(self, data: bytes, name: str) -> None:
        """Nothing."""

    def log_checkpoint(self, adapter: bytes, step: int, metrics: Mapping[str, float]) -> str | None:
        """None."""
        return None

    def finish(self, status: Status = "FINISHED") -> None:
        """Nothing."""
