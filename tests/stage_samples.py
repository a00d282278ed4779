"""Stages that write down their calls, and as much of a model as running one needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from charengine.config import Character
from charengine.machine.home import Home
from charengine.profiles.loading import load_profile
from charengine.records import ReportRecord
from charengine.run.workspace import Workspace
from charengine.stage import Given, Stage

GRISHA = Character(name="Grisha", prompt="an orc woman", class_noun="orc woman", trigger="griqul")


class Model:
    """As much of a model as running a stage needs."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint, self.unloaded = fingerprint, 0
        self.device = torch.device("cpu")

    def unload(self, *parts: str) -> None:
        self.unloaded += 1


def workspace_in(home: Home, *overrides: str) -> Workspace:
    made = Workspace(GRISHA, load_profile("embedded", list(overrides)), home)
    made.__dict__["models"] = SimpleNamespace(
        **{name: Model(name) for name in ("editor", "captioner", "diffusion", "embedder")}
    )
    return made


def counted(fail: list[Exception] | None = None, **declared: Any) -> tuple[Stage[ReportRecord], list[Given]]:
    """A stage that writes down each call, and first raises what it is given."""
    calls: list[Given] = []

    def work(given: Given, *inputs: Any) -> ReportRecord:
        calls.append(given)
        if fail:
            raise fail.pop(0)
        return ReportRecord(html=given.store.put(b"page", "page.html"))

    return Stage(**{"name": "crop", "version": 1, "makes": ReportRecord, "work": work, **declared}), calls
