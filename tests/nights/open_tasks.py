"""A night's open tasks, told to Prefect's API and to one in memory that answers as it does."""

from __future__ import annotations

import itertools
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from charengine.services.unheard import SECONDS, Unheard
from nights.servers import Request


class PrefectApi:
    """Prefect's API over HTTP: tasks are known by events, of which the one of the latest moment counts."""

    def __init__(self, request: Request = lambda name: False) -> None:
        self._request = request
        self._kept: dict[str, dict[str, dict[str, Any]]] = {"flows": {}, "flow_runs": {}, "task_runs": {}}
        self._ids = itertools.count(1)

    def post(self, path: str, body: Any) -> Any:
        """The answer to a POST."""
        self._request(path)
        kind, _, rest = path.partition("/")
        if kind == "events":
            for event in body:
                self._hear(event)
        elif rest == "filter":
            named = {one["id"]: one["name"] for one in self._kept["flows"].values()}
            found = [{**one, "flow": named[self._run_of(one)["flow_id"]]} for one in self._kept[kind].values()]
            return [one for one in found if self._fits(one, kind, body)]
        elif rest.endswith("/set_state"):
            self._kept[kind][rest.partition("/")[0]] |= {"state_type": body["state"]["type"], "at": "later"}
        else:
            made = {"id": f"{next(self._ids)}", "parent_task_run_id": None, "run_count": 1, **body}
            return self._kept[kind].setdefault(made["id"], made | {"state_type": body.get("state", {}).get("type")})
        return None

    def _run_of(self, one: dict[str, Any]) -> dict[str, Any]:
        return self._kept["flow_runs"][one.get("flow_run_id", one["id"])]

    def _fits(self, one: dict[str, Any], kind: str, body: dict[str, Any]) -> bool:
        asked = [("flow", "flows", "name", one)]
        asked += [("state_type", "flow_runs", "state", self._run_of(one)), ("state_type", kind, "state", one)]
        asked += [(name, kind, name, one) for name in ("id", "parent_task_run_id", "flow_run_id")]
        for name, part, wanted, told in asked:
            given = body.get(part, {}).get(wanted)
            if given and told[name] not in given.get("type", given)["any_"]:
                return False
        return True

    def _hear(self, event: dict[str, Any]) -> None:
        task = event["resource"]["prefect.resource.id"].rpartition(".")[2]
        told = {"id": task, "state_type": event["payload"]["validated_state"]["type"], "at": event["occurred"]}
        told["flow_run_id"] = event["related"][0]["prefect.resource.id"].rpartition(".")[2]
        kept = self._kept["task_runs"].setdefault(task, {**told, **event["payload"]["task_run"]})
        if kept["at"] < told["at"]:
            kept |= told


class Studio:
    """Runs and tasks that Prefect is told of.

    Args:
        api: Prefect's.
        flow: name of theirs.
    """

    def __init__(self, api: Any, flow: str) -> None:
        self.api, self.began = api, datetime.now(UTC) - timedelta(minutes=10)
        self._flow = api.post("flows/", {"name": flow})["id"]
        self.tasks: dict[str, str] = {}

    def run(self, state: str, **more: str) -> str:
        made = self.api.post("flow_runs/", {"flow_id": self._flow, **more})["id"]
        for kind in ("RUNNING", state):
            self.api.post(f"flow_runs/{made}/set_state", {"state": {"type": kind}, "force": True})
        return str(made)

    def tell(self, run: str, name: str, state: str, minute: int, attempt: int = 1) -> None:
        """An event of a task, as its own process tells it."""
        task = self.tasks.setdefault(name, str(uuid.uuid4()))
        of_it = {"task_key": name, "dynamic_key": name, "name": name, "flow_run_run_count": attempt}
        of_run = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}
        event = {
            "id": str(uuid.uuid4()),
            "event": f"prefect.task-run.{state.title()}",
            "occurred": (self.began + timedelta(minutes=minute)).isoformat(),
            "resource": {"prefect.resource.id": f"prefect.task-run.{task}", "prefect.orchestration": "client"},
            "related": [of_run],
            "payload": {"validated_state": {"type": state, "name": state.title()}, "task_run": of_it},
        }
        self.api.post("events", [event])

    def states(self, wanted: int) -> dict[str, str]:
        """Of each task, once so many are known."""
        deadline = time.monotonic() + 60
        of_these = {"task_runs": {"id": {"any_": [*self.tasks.values()]}}}
        while len(found := self.api.post("task_runs/filter", of_these)) < wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return {one["name"]: one["state_type"] for one in found}


def told(api: Any, flow: str) -> list[Any]:
    """What becomes of tasks that are left open, in the course of a night."""
    studio, other = Studio(api, flow), Studio(api, f"not {flow}")
    made, cast, at_work = studio.run("COMPLETED"), studio.run("CRASHED"), studio.run("RUNNING")
    studio.tell(made, "sheet", "COMPLETED", 1)
    for run, name in ((made, "crop"), (cast, "left"), (cast, "submitted"), (at_work, "train")):
        studio.tell(run, name, "RUNNING", 1)
    other.tell(other.run("COMPLETED"), "other", "RUNNING", 1)
    said: list[Any] = [studio.states(5), other.states(1)]
    studio.run("RUNNING", parent_task_run_id=studio.tasks["submitted"])
    ends = Unheard(api)
    said += [ends.end(0.0), ends.end(SECONDS - 1), ends.end(SECONDS)]
    studio.tell(made, "crop", "RUNNING", 2)  # held back until now
    studio.tell(at_work, "after", "PENDING", 3)
    return [*said, studio.states(6), other.states(1), ends.end(SECONDS * 2)]
