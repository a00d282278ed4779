"""A flow says that it lives, and its end waits for nobody who says so."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings

from charengine.machine.environment import DEFAULTS, HEARTBEATS
from flows.batch import batch
from flows.character import character
from flows.sweep import sweep
from tasks import heartbeats
from tasks.heartbeats import beating, instead_of_prefects

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of whom a heartbeat was told."""
    found: list[str] = []

    def emit(event: str, resource: dict[str, str]) -> None:
        assert event == "prefect.flow-run.heartbeat"  # which the automation waits for
        found.append(resource["prefect.resource.id"])

    monkeypatch.setattr(heartbeats, "emit_event", emit)
    return found


def beaten(seconds: float) -> str:
    """Flow run of a flow that beats and goes on for so long."""

    def body() -> str:
        from prefect import runtime

        with beating():
            time.sleep(seconds)
        return f"prefect.flow-run.{runtime.flow_run.id}"

    return str(flow(body, name="under-test")())


def test_a_flow_beats_at_once_again_and_again_and_not_when_it_has_ended(
    heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "EVERY", 0.05)
    run = beaten(0.5)
    assert 3 <= Counter(heard)[run] <= 11
    time.sleep(0.2)  # one may be on its way
    told = len(heard)
    time.sleep(0.2)
    assert len(heard) == told


def test_a_flows_end_does_not_wait_for_a_heartbeat_that_does_not_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "emit_event", lambda **told: time.sleep(1.5))

    took: list[float] = []

    def body() -> None:
        began = time.monotonic()
        with beating():
            pass
        took.append(time.monotonic() - began)

    flow(body, name="under-test")()
    assert took[0] < 1.0


def test_a_heartbeat_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def emit(**told: Any) -> None:
        calls.append(1)
        raise OSError("Prefect is away")

    monkeypatch.setattr(heartbeats, "EVERY", 0.05)
    monkeypatch.setattr(heartbeats, "emit_event", emit)
    beaten(0.5)
    assert len(calls) >= 3


def test_where_prefects_own_heartbeats_are_asked_for_there_are_no_others(heard: list[str]) -> None:
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        beaten(0)
    assert heard == []


@pytest.mark.parametrize(("chosen", "own"), [(None, None), (DEFAULTS[HEARTBEATS], None), ("60", 60)])
def test_prefects_heartbeats_are_those_that_the_user_has_chosen(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, own: int | None
) -> None:
    monkeypatch.delenv(HEARTBEATS, raising=False)
    if chosen:
        monkeypatch.setenv(HEARTBEATS, chosen)
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 60}), instead_of_prefects():
        assert get_current_settings().flows.heartbeat_frequency == own


@pytest.mark.parametrize(
    "refused", [lambda: character(name="%"), lambda: sweep(source="none"), lambda: batch(file="none")]
)
def test_every_flow_of_ours_beats(heard: list[str], refused: Callable[[], Any]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - of each another kind: what is asked for makes no sense
        refused()
    assert len(heard) == 1
