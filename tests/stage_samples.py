"""Stages that write down their calls, and as much of a model as running one needs."""

from __future__ import annotations

from typing import Any

import torch

from charengine.records import ReportRecord
from charengine.stage import Given, Stage


class Model:
    """As much of a model as running a stage needs."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint, self.unloaded = fingerprint, 0
        self.device = torch.device("cpu")

    def unload(self, *parts: str) -> None:
        self.unloaded += 1


def counted(fail: list[Exception] | None = None, **declared: Any) -> tuple[Stage[ReportRecord], list[Given]]:
    """A stage that writes down each call, and first raises what it is given."""
    calls: list[Given] = []

    def work(given: Given, *inputs: Any) -> ReportRecord:
        calls.append(given)
        if fail:
            raise fail.pop(0)
        return ReportRecord(html=given.store.put(b"page", "page.html"))

    return Stage(**{"name": "crop", "version": 1, "makes": ReportRecord, "work": work, **declared}), calls
