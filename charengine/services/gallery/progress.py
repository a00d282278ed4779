"""How far a run is: Prefect's task runs say which stage, a progress artifact says how far the stage is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from charengine.run.request import STAGES

Json = dict[str, Any]

OPTIONAL = ("expand",)  # is left out of the list unless it runs
MADE, NOW, WAITS, FAILED = "done", "now", "waits", "failed"


@dataclass(frozen=True)
class StageLine:
    """A stage: `how` is one of done, now, waits and failed; `said` in words."""

    stage: str
    how: str
    said: str


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        stages: in their order.
        share: of the stage that runs, 0 to 100; None where nobody says.
        line: step, loss and time left of it, in words.
    """

    stages: tuple[StageLine, ...]
    share: float | None = None
    line: str = ""

    @property
    def stage(self) -> str:
        """The stage that runs; empty between two of them."""
        return next((line.stage for line in self.stages if line.how == NOW), "")

    @property
    def done(self) -> int:
        """How many stages are done."""
        return sum(line.how == MADE for line in self.stages)


def progress_of(task_runs: list[Json], artifact: Json | None, ended: str = "") -> Progress:
    """From what Prefect says.

    Args:
        task_runs: of the flow run, in the order started.
        artifact: its newest progress artifact: `data` 0 to 100, `description` in words.
        ended: how the run ended, "stopped" or otherwise, or "stopping"; empty while it goes on. Where it was killed, Prefect's task runs still go on.
    """
    newest: dict[str, Json] = {}
    for task in task_runs:  # a stage that is tried again has one task run; one that was started twice has two
        stage = str(task.get("name", "")).split("-")[0]
        if stage in STAGES:
            newest[stage] = task
    lines = tuple(
        _line(stage, newest.get(stage), ended) for stage in STAGES if stage in newest or stage not in OPTIONAL
    )
    if not ended and all(line.how in (MADE, WAITS) for line in lines):
        lines = tuple(_begins(lines, newest))
    now = next((line for line in lines if line.how == NOW), None)
    if now is None or not artifact or not _belongs(artifact, now.stage):
        return Progress(lines)
    return Progress(lines, float(artifact.get("data") or 0.0), str(artifact.get("description") or ""))


def _begins(lines: tuple[StageLine, ...], known: Mapping[str, Json]) -> Iterator[StageLine]:
    """The next stage begins, of which Prefect hears a moment later, unless it waits to be tried again."""
    first = next((line for line in lines if line.how == WAITS), None)
    for line in lines:
        yield replace(line, how=NOW, said="begins") if line is first and line.stage not in known else line


def _belongs(artifact: Json, stage: str) -> bool:
    """Whether an artifact `NAME-training` is about the stage `train`: the training's stays after it has ended."""
    return str(artifact.get("key", "")).rpartition("-")[2].startswith(stage)


def _line(stage: str, task: Json | None, ended: str) -> StageLine:
    waits = StageLine(stage, WAITS, "not made" if ended else "waits")
    if task is None:
        return waits
    kind = task.get("state_type")
    if kind == "COMPLETED":
        kept = task.get("state_name") == "Cached"
        seconds = float(task.get("total_run_time") or 0.0)
        return StageLine(stage, MADE, "unchanged, taken from an earlier run" if kept else f"done in {seconds:.0f} s")
    if kind in ("FAILED", "CRASHED"):
        return StageLine(stage, FAILED, "stopped" if ended.startswith("stop") else "failed")  # as training ends then
    if kind in ("CANCELLED", "CANCELLING"):
        return StageLine(stage, FAILED, "stopped")
    if kind != "RUNNING":
        return waits
    if ended and ended != "stopping":
        return StageLine(stage, FAILED, "stopped")
    seconds = float(task.get("estimated_run_time") or 0.0)
    return StageLine(stage, NOW, f"is being made, {seconds:.0f} s so far" if seconds >= 1 else "is being made")
