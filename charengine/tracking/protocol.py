"""Tracking: the `Tracker` protocol, a tracker that records nothing, and the way to MLflow (`tracking/mlflow.py`).

A tracker is one open run. Stages log to the run they are given and open children by stage key; a child whose key was
already started is reopened, never duplicated, and knows the last step it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


Status = Literal["FINISHED", "FAILED", "KILLED"]

KEY_TAG = "charengine.key"  # of a run: under which it is found again
PROCESS_TAG = "charengine.process"  # who has the run open


class Tracker(Protocol):
    """One open run of an experiment."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None when nothing is recorded."""
        ...

    @property
    def url(self) -> str:
        """The run's page in MLflow's UI; empty when no server is in use."""
        ...

    @property
    def runs_url(self) -> str:
        """The experiment's runs in MLflow's UI; empty when no server is in use."""
        ...

    @property
    def strengths_url(self) -> str:
        """The view of all cells, strength against identity and adherence; empty when no server is in use."""
        ...

    @property
    def adapter_url(self) -> str:
        """Download of the registered pick; empty when no server is in use or nothing is registered."""
        ...

    def picture_url(self, artifact: str) -> str:
        """Address of a logged picture; empty when no server is in use."""
        ...

    def child(
        self, name: str, *, key: str, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
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
        """A picture: with a step one of a series under the key `name`, else `images/<name>.png`."""
        ...

    def log_bytes(self, data: bytes, name: str) -> None:
        """A file artifact."""
        ...

    def log_checkpoint(self, adapter: bytes, step: int, metrics: Mapping[str, float]) -> str | None:
        """An adapter as a logged model; its id."""
        ...

    def log_dataset(self, name: str, digest: str, tags: Mapping[str, str]) -> None:
        """The dataset as an input of the run, once."""
        ...

    def register_pick(
        self,
        name: str,
        adapter: bytes,
        step: int,
        strength: float,
        metrics: Mapping[str, float],
        rescaled: bool = True,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """The recommended adapter as the character's newest registered version, once; alias `champion` when none before is better.

        Args:
            name: of the character in the registry.
            adapter: the file's bytes.
            step: of the picked checkpoint.
            strength: it was picked at.
            metrics: of the pick.
            rescaled: the file has the picked strength as its 1.0 already (not so for DoRA).
            facts: what its description says (`charengine.adapter.card.LABELS`); with `base_model` MLflow can load it.
        """
        ...

    def sync(self) -> None:
        """What was logged survives a power cut from now on, whether MLflow has it yet or not."""
        ...

    def finish(self, status: Status = "FINISHED") -> None:
        """Flush and close the run."""
        ...


class NullTracker:
    """Records nothing; what the engine uses when nobody is watching."""

    run_id: str | None = None
    url: str = ""
    runs_url: str = ""
    strengths_url: str = ""
    adapter_url: str = ""

    def picture_url(self, artifact: str) -> str:
        """Empty: nothing was logged."""
        return ""

    def child(
        self, name: str, *, key: str, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
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

    def log_dataset(self, name: str, digest: str, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def register_pick(
        self,
        name: str,
        adapter: bytes,
        step: int,
        strength: float,
        metrics: Mapping[str, float],
        rescaled: bool = True,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def finish(self, status: Status = "FINISHED") -> None:
        """Nothing."""


@contextmanager
def closing(tracker: Tracker) -> Iterator[None]:
    """Close the MLflow run with the status it ends in; cancelled is KILLED, and may be continued."""
    status: Status = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracker.finish(status)
