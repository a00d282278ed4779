"""A character that was made, and what may happen to it before it is asked for again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from charengine.machine.addresses import database_uri
from charengine.machine.home import Home
from charengine.machine.processes import this_process
from charengine.machine.shared import open_store
from charengine.records import RunResult
from charengine.run.again import made_before
from charengine.run.request import RunRequest, check
from charengine.store import refs_in
from charengine.tracking.journal import JOURNAL
from charengine.tracking.protocol import KEY_TAG, PROCESS_TAG
from charengine.tracking.spool import SPOOL

PROMPT = "an orc woman with red hair and a blue coat"
DEAD = this_process().rpartition(":")[0] + ":999999999_1"  # of this machine, and no process


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


def lose_a_blob(made: Made) -> None:
    store = open_store(made.home)
    store.drop(refs_in(_record(made).training)[0])


def change_a_blob(made: Made) -> None:
    path = open_store(made.home).path(_record(made).sheet.image)
    assert path
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def _record(made: Made) -> Any:
    from charengine.run.folder import read_run

    return read_run(made.out)


def lose_a_result(made: Made) -> None:
    [kept] = (made.home.store / "results").glob(f"{_key(made, 'sweep')}.json")
    kept.unlink()


def _key(made: Made, stage: str) -> str:
    return str(next(fact.key for fact in _record(made).stages if fact.stage == stage))


def forget_that_it_is_whole(made: Made) -> None:
    for path in (made.home.store / "results").glob("run-*.json"):
        path.unlink()


def leave_work_unfinished(made: Made) -> None:
    (made.home.state / _key(made, "train")).mkdir(parents=True)


def leave_parts_unfinished(made: Made) -> None:
    (made.home.store / "results" / _key(made, "sweep")).mkdir()


def edit_a_caption(made: Made) -> None:
    [caption] = (made.out / "dataset").rglob("front.txt")
    caption.write_text(f"{made.result.trigger}, orc woman, front view, smiling\n")


def change_the_sheet(made: Made) -> None:
    picture = Image.open(made.request.sheet).convert("RGB")
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(made.request.sheet)


def leave_a_journal(made: Made) -> None:
    folder = made.home.mlflow / JOURNAL
    folder.mkdir(exist_ok=True)
    (folder / "999999999_1-1.jsonl").write_text(
        json.dumps({"what": "open", "run": "run-other", "name": "Bea", "params": {}, "tags": {}}) + "\n"
    )


def leave_points(made: Made) -> None:
    folder = made.home.mlflow / SPOOL
    folder.mkdir(exist_ok=True)
    (folder / f"{'a' * 32}.jsonl").write_text(json.dumps({"process": DEAD}) + "\n")


CHANGES: dict[str, Callable[[Made], object]] = {
    "a kept file is gone": lose_a_blob,
    "a kept file has changed": change_a_blob,
    "a kept result is gone": lose_a_result,
    "the run was never whole": forget_that_it_is_whole,
    "work under a stage's key is unfinished": leave_work_unfinished,
    "parts of a work lie under a stage's key": leave_parts_unfinished,
    "a caption was edited": edit_a_caption,
    "the given sheet is another": change_the_sheet,
    "the record is gone": lambda made: (made.out / "run.json").unlink(),
    "the result is gone": lambda made: (made.out / "result.json").unlink(),
    "the folder is gone": lambda made: shutil.rmtree(made.out),
    "MLflow is to be told of another run": leave_a_journal,
    "numbers of a process that died wait": leave_points,
    "a process that died left a run open": lambda made: made.open_run(DEAD),
    "the run is no longer in MLflow": lambda made: made.mlflow().delete_run(made.result.mlflow_run_id),
    "the run did not end in MLflow": lambda made: made.mlflow().update_run(made.result.mlflow_run_id, "FAILED"),
    "MLflow's run is another character's": lambda made: made.mlflow().set_tag(
        made.result.mlflow_run_id, KEY_TAG, "run-0"
    ),
    "MLflow's database is gone": lambda made: (made.home.mlflow / "mlflow.db").unlink(),
    "MLflow's database is torn": lambda made: (made.home.mlflow / "mlflow.db").write_bytes(b"no database" * 1000),
}
