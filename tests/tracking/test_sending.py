"""A point reaches MLflow with its own value, step and time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from charengine.tracking.mlflow import Connection
from charengine.tracking.spool import Point


def test_each_point_is_sent_with_its_name_value_time_and_step() -> None:
    sent: list[Any] = []
    connection: Any = Connection.__new__(Connection)
    connection.client = SimpleNamespace(
        log_batch=lambda run, metrics, synchronous: sent.append((run, metrics, synchronous))
    )
    connection.send(
        "run", [Point("train/loss", 0.25, 7, 1_700_000_000_000), Point("train/loss", 0.5, 8, 1_700_000_001_000)]
    )
    [(run, metrics, synchronous)] = sent
    assert (run, synchronous) == ("run", True)
    assert [(one.key, one.value, one.timestamp, one.step) for one in metrics] == [
        ("train/loss", 0.25, 1_700_000_000_000, 7),
        ("train/loss", 0.5, 1_700_000_001_000, 8),
    ]
