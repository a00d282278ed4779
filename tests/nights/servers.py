"""Prefect and MLflow as far as the engine calls them, in memory; test_servers_agree.py holds them to the real ones.

Each request can be refused, or be answered by an error after it took effect, as when the connection breaks before the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
from mlflow.exceptions import MlflowException

from charengine.tracking.protocol import KEY_TAG

Request = Callable[[str], bool]
"""Called with a request's name before it takes effect: raises to refuse it; True when its answer is to be lost."""


# --- MLflow ---


@dataclass
class _Run:
    run_id: str
    name: str
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def shown(self) -> Any:
        info = SimpleNamespace(run_id=self.run_id, run_name=self.name, status=self.status)
        latest = {key: max(points)[1] for key, points in self.metrics.items()}
        return SimpleNamespace(
            info=info, data=SimpleNamespace(params=dict(self.params), tags=dict(self.tags), metrics=latest)
        )


class Mlflow:
    """MLflow's server."""

    def __init__(self) -> None:
        self.experiments: dict[str, Any] = {}
        self.runs: dict[str, _Run] = {}
        self.models: dict[str, Any] = {}
        self.versions: dict[str, list[Any]] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self._ids = itertools.count(1)

    def next_id(self, kind: str) -> str:
        """A fresh id."""
        return f"{kind}{next(self._ids)}"


class MlflowClient:
    """What `mlflow.MlflowClient` is to the tracker.

    Args:
        server: all clients' own.
        request: may refuse, or lose the answer.
    """

    def __init__(self, server: Mlflow, request: Request = lambda name: False) -> None:
        self._server, self._request = server, request

    def _answer(self, name: str, call: Callable[[], Any]) -> Any:
        lost = self._request(name)
        answer = call()
        if lost:
            raise MlflowException(f"{name}: the connection was reset")
        return answer

    def get_experiment_by_name(self, name: str) -> Any:
        found = self._server.experiments
        return self._answer("get_experiment", lambda: next((one for one in found.values() if one.name == name), None))

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> str:
        def call() -> str:
            if any(one.name == name for one in self._server.experiments.values()):
                raise MlflowException(f"Experiment(name={name}) already exists.")
            number = self._server.next_id("experiment")
            self._server.experiments[number] = SimpleNamespace(experiment_id=number, name=name, tags=dict(tags or {}))
            return number

        return str(self._answer("create_experiment", call))

    def get_experiment(self, experiment_id: str) -> Any:
        return self._answer("get_experiment", lambda: self._server.experiments[experiment_id])

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        self._answer("set_experiment_tag", lambda: self._server.experiments[experiment_id].tags.update({key: value}))

    def search_runs(
        self, experiment_ids: list[str], filter_string: str = "", order_by: Any = None, max_results: int = 1000
    ) -> list[Any]:
        def call() -> list[Any]:
            key = filter_string.split("'")[1] if KEY_TAG in filter_string else None
            status = filter_string.split("'")[-2] if "status" in filter_string else None
            found = [
                run
                for run in self._server.runs.values()
                if (key is None or run.tags.get(KEY_TAG) == key) and (status is None or run.status == status)
            ]
            return [run.shown() for run in found[:max_results]]

        return list(self._answer("search_runs", call))

    def create_run(self, experiment_id: str, run_name: str = "", tags: Any = None) -> Any:
        def call() -> Any:
            run = _Run(self._server.next_id("run"), run_name, tags={**tags, "mlflow.runName": run_name})
            self._server.runs[run.run_id] = run
            return run.shown()

        return self._answer("create_run", call)

    def get_run(self, run_id: str) -> Any:
        return self._answer("get_run", lambda: self._run(run_id).shown())

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        self._answer("update_run", lambda: setattr(self._run(run_id), "status", status))

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        self._answer("set_terminated", lambda: setattr(self._run(run_id), "status", status))

    def log_batch(
        self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), synchronous: bool = True
    ) -> None:
        def call() -> None:
            run = self._run(run_id)
            for param in params:
                if run.params.get(param.key, param.value) != param.value:
                    raise MlflowException(f"Changing param values is not allowed. Param with key='{param.key}'")
            run.params.update({param.key: param.value for param in params})
            run.tags.update({tag.key: tag.value for tag in tags})
            for point in metrics:
                points = run.metrics.setdefault(point.key, [])
                row = (point.step, point.value, point.timestamp)
                if row not in points:  # MLflow keeps an equal row once
                    points.append(row)

        self._answer("log_batch", call)

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        def call() -> list[Any]:
            points = self._run(run_id).metrics.get(key, [])
            return [SimpleNamespace(key=key, step=step, value=value) for step, value, _ in points]

        return list(self._answer("get_metric_history", call))

    def create_logged_model(
        self, experiment_id: str, name: str, source_run_id: str, tags: Any, params: Any, model_type: str
    ) -> Any:
        def call() -> Any:
            number = self._server.next_id("model")
            model = SimpleNamespace(
                model_id=number,
                name=name,
                artifact_location=f"mlflow-artifacts:/1/models/{number}/artifacts",
                status="PENDING",
            )
            self._server.models[number] = model
            return model

        return self._answer("create_logged_model", call)

    def log_model_artifacts(self, model_id: str, local_dir: str) -> None:
        self._answer("log_model_artifacts", lambda: None)

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        self._answer("finalize_logged_model", lambda: setattr(self._server.models[model_id], "status", status))

    def log_outputs(self, run_id: str, models: Any) -> None:
        self._answer("log_outputs", lambda: None)

    def create_registered_model(self, name: str) -> None:
        def call() -> None:
            if name in self._server.versions:
                raise MlflowException(f"Registered Model (name={name}) already exists.")
            self._server.versions[name] = []

        self._answer("create_registered_model", call)

    def create_model_version(
        self, name: str, source: str, run_id: str, model_id: str = "", tags: Any = None, description: str = ""
    ) -> Any:
        def call() -> Any:
            made = self._server.versions[name]
            version = SimpleNamespace(
                name=name,
                version=str(len(made) + 1),
                tags=dict(tags or {}),
                run_id=run_id,
                model_id=model_id,
                source=source,
            )
            made.append(version)
            return version

        return self._answer("create_model_version", call)

    def search_model_versions(self, filter_string: str = "", max_results: int = 100) -> list[Any]:
        def call() -> list[Any]:
            name = filter_string.split("'")[1] if "name" in filter_string else None
            run = filter_string.split("'")[-2] if "run_id" in filter_string else None
            every = [version for versions in self._server.versions.values() for version in reversed(versions)]
            return [one for one in every if name in (None, one.name) and run in (None, one.run_id)][:max_results]

        return list(self._answer("search_model_versions", call))

    def get_registered_model(self, name: str) -> Any:
        aliases = self._server.aliases.setdefault(name, {})
        return self._answer("get_registered_model", lambda: SimpleNamespace(name=name, aliases=dict(aliases)))

    def get_model_version(self, name: str, version: str) -> Any:
        return self._answer("get_model_version", lambda: self._server.versions[name][int(version) - 1])

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._answer("set_alias", lambda: self._server.aliases.setdefault(name, {}).update({alias: version}))

    def _run(self, run_id: str) -> _Run:
        if run_id not in self._server.runs:
            raise MlflowException(f"Run with id={run_id} not found")
        return self._server.runs[run_id]


# --- Prefect ---


@dataclass
class FlowRun:
    """A flow run as Prefect's client shows it."""

    id: str
    name: str
    parameters: dict[str, Any]
    state: State
    worker: int = 0  # process id of the worker that took it


@dataclass(frozen=True)
class State:
    """A state of a flow run."""

    type: str
    message: str = ""
    name: str = ""

    def is_final(self) -> bool:
        return self.type in ("COMPLETED", "CRASHED", "FAILED", "CANCELLED")

    def is_crashed(self) -> bool:
        return self.type == "CRASHED"

    def is_completed(self) -> bool:
        return self.type == "COMPLETED"


class Prefect:
    """Prefect's server and its client.

    Args:
        request: may refuse, or lose the answer.
    """

    def __init__(self, request: Request = lambda name: False) -> None:
        self._request = request
        self.runs: dict[str, FlowRun] = {}
        self.keys: dict[str, str] = {}

    def _answer(self, name: str, call: Callable[[], Any]) -> Any:
        lost = self._request(name)
        answer = call()
        if lost:
            raise httpx.ReadError(f"{name}: the connection was reset")
        return answer

    def run_deployment(
        self, name: str, parameters: dict[str, Any], idempotency_key: str, flow_run_name: str = "", **_: Any
    ) -> FlowRun:
        """A run of the deployment; with a key that was used before, that run."""

        def call() -> FlowRun:
            if idempotency_key not in self.keys:
                number = f"flow{len(self.runs) + 1}"
                self.keys[idempotency_key] = number
                self.runs[number] = FlowRun(number, flow_run_name, parameters, State("SCHEDULED"))
            return self._shown(self.keys[idempotency_key])

        return self._answer("run_deployment", call)  # type: ignore[no-any-return]

    def get_client(self, sync_client: bool = True) -> Prefect:
        return self

    def __enter__(self) -> Prefect:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def read_flow_run(self, run_id: str) -> FlowRun:
        return self._answer("read_flow_run", lambda: self._shown(run_id))  # type: ignore[no-any-return]

    def set_flow_run_state(self, run_id: str, state: State, force: bool = False) -> bool:
        """Whether it is taken: a final state stays, unless forced."""

        def call() -> bool:
            run = self.runs[run_id]
            if run.state.is_final() and not force:
                return False
            run.state = state
            return True

        return bool(self._answer("set_flow_run_state", call))

    def next_scheduled(self, worker: int) -> FlowRun | None:
        """A run for a worker, pending from now on."""

        def call() -> FlowRun | None:
            for run in self.runs.values():
                if run.state.type == "SCHEDULED":
                    run.state, run.worker = State("PENDING"), worker
                    return self._shown(run.id)
            return None

        return self._answer("get_scheduled", call)  # type: ignore[no-any-return]

    def active(self) -> Iterator[FlowRun]:
        """Runs that are taken and not final."""
        return (run for run in self.runs.values() if run.state.type in ("PENDING", "RUNNING"))

    def _shown(self, run_id: str) -> FlowRun:
        run = self.runs[run_id]
        return FlowRun(run.id, run.name, run.parameters, run.state, run.worker)
