"""A character that was made, and what asks for it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from charengine.machine.addresses import database_uri
from charengine.machine.home import Home
from charengine.records import RunResult
from charengine.run.again import made_before
from charengine.run.request import RunRequest, check
from charengine.tracking.protocol import KEY_TAG, PROCESS_TAG

PROMPT = "an orc woman with red hair and a blue coat"


@dataclass(frozen=True)
class Made:
    """A character that was made, and what asks for it again."""

    home: Home
    request: RunRequest
    result: RunResult

    @property
    def out(self) -> Path:
        return Path(self.request.out)

    def again(self, **changed: Any) -> RunResult | None:
        """As the command asks, with these parts of the request changed."""
        return made_before(check(replace(self.request, **changed), self.home), self.home)

    def files(self) -> dict[Path, bytes]:
        return {path.relative_to(self.out): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}

    def arguments(self) -> list[str]:
        sets = [part for setting in self.request.overrides for part in ("--set", setting)]
        return ["run", PROMPT, "--name", "Aya", "--sheet", self.request.sheet, "--out", str(self.out), "--json", *sets]

    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=database_uri(self.home), registry_uri=database_uri(self.home))

    def told(self) -> list[Any]:
        """All that MLflow holds of runs."""
        client = self.mlflow()
        found = client.search_runs([client.get_experiment_by_name("charengine").experiment_id])
        return [(run.info.run_id, run.info.status, run.info.end_time, run.data.tags, run.data.metrics) for run in found]

    def open_run(self, process: str) -> None:
        """Another character's run that a process has open."""
        client = self.mlflow()
        tags = {KEY_TAG: "run-other", PROCESS_TAG: process}
        client.create_run(client.get_experiment_by_name("charengine").experiment_id, run_name="Bea", tags=tags)
