"""The servers of the nights answer as the real ones do: the same calls, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from charengine.machine.addresses import database_uri
from charengine.machine.home import Home
from charengine.tracking.registry import pick_file
from nights.servers import Mlflow, MlflowClient, Prefect, State

KEY = "charengine.key"


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except MlflowException:
        return True
    return False


def told_by_mlflow(client: Any) -> list[Any]:
    """What the tracker asks MLflow in a night, and the answers; ids by their order."""
    said: list[Any] = [client.get_experiment_by_name("night")]
    experiment = client.create_experiment("night")
    said.append(refused(lambda: client.create_experiment("night")))
    client.set_experiment_tag(experiment, "view", "one")
    said.append(client.get_experiment(experiment).tags["view"])
    run = client.create_run(experiment, run_name="Aya", tags={KEY: "run-1", "character": "Aya"})
    number = run.info.run_id
    said += [run.info.status, run.info.run_name, run.data.tags[KEY]]
    client.log_batch(number, params=[Param("a", "1")], tags=[RunTag("b", "2")], synchronous=True)
    client.log_batch(number, params=[Param("a", "1")])
    said.append(refused(lambda: client.log_batch(number, params=[Param("a", "2")])))
    points = [Metric("loss", 0.5, 1000, 1), Metric("loss", 0.4, 1001, 2)]
    for _ in range(2):  # an answer was lost: the same rows are held once
        client.log_batch(number, metrics=points, synchronous=True)
    client.log_batch(number, metrics=[Metric("loss", 0.5, 2000, 1)], synchronous=True)  # another time is another row
    said.append(sorted((point.step, point.value) for point in client.get_metric_history(number, "loss")))
    said.append(client.get_metric_history(number, "nothing") or [])
    (found,) = client.search_runs(
        [experiment], f"tags.`{KEY}` = 'run-1'", order_by=["attributes.start_time ASC"], max_results=1
    )
    said += [found.info.run_id == number, found.data.params, found.data.tags["b"], sorted(found.data.metrics)]
    said.append(len(client.search_runs([experiment], f"tags.`{KEY}` = 'run-2'")))
    client.set_terminated(number, "KILLED")
    said += [client.get_run(number).info.status, len(client.search_runs([experiment], "attributes.status = 'RUNNING'"))]
    client.update_run(number, status="RUNNING")
    said.append(
        [one.info.run_id == number for one in client.search_runs([experiment], "attributes.status = 'RUNNING'")]
    )
    said.append(refused(lambda: client.get_run("0" * 32)))
    return said + _told_by_the_registry(client, experiment, number)


def _told_by_the_registry(client: Any, experiment: str, run: str) -> list[Any]:
    model = client.create_logged_model(
        experiment, "Aya-recommended", run, {"a": "b"}, {"step": "4"}, model_type="adapter"
    )
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model("Aya")
    said: list[Any] = [refused(lambda: client.create_registered_model("Aya"))]
    said.append(len(client.search_model_versions(f"name = 'Aya' and run_id = '{run}'", max_results=1)))
    made = client.create_model_version(
        "Aya", source=model.artifact_location, run_id=run, model_id=model.model_id, tags={"score": "1"}
    )
    said += [
        str(made.version),
        pick_file("Aya", made).startswith(f"{model.model_id}/"),
        client.get_registered_model("Aya").aliases,
    ]
    client.set_registered_model_alias("Aya", "champion", made.version)
    said.append({name: str(version) for name, version in client.get_registered_model("Aya").aliases.items()})
    said.append(client.get_model_version("Aya", made.version).tags)
    (found,) = client.search_model_versions(f"name = 'Aya' and run_id = '{run}'", max_results=1)
    said += [str(found.version), found.run_id == run, pick_file("Aya", found).startswith(f"{model.model_id}/")]
    return said


def test_mlflow_of_the_nights_answers_as_mlflow_does(home: Home) -> None:
    from mlflow import MlflowClient as Real

    uri = database_uri(home)
    assert told_by_mlflow(MlflowClient(Mlflow())) == told_by_mlflow(Real(tracking_uri=uri, registry_uri=uri))


def told_by_prefect(
    submit: Callable[[str], Any], read: Callable[[Any], Any], propose: Callable[[Any, str], Any]
) -> list[Any]:
    """What a batch and a worker ask Prefect: a key gives one run, a final state stays."""
    first, again, other = submit("night:aya"), submit("night:aya"), submit("night:bo")
    said: list[Any] = [first.id == again.id, first.id == other.id, first.state.is_final(), first.name]
    propose(first.id, "PENDING")
    propose(first.id, "RUNNING")
    said.append(read(first.id).state.is_final())
    propose(first.id, "COMPLETED")
    said += [read(first.id).state.is_completed(), read(first.id).state.is_final()]
    propose(first.id, "CRASHED")  # the worker, which saw its process end badly after all
    said += [read(first.id).state.is_completed(), read(first.id).state.is_crashed()]
    propose(other.id, "CRASHED")
    said += [read(other.id).state.is_crashed(), submit("night:bo").state.is_crashed()]
    return said


def of_the_nights() -> list[Any]:
    server = Prefect()

    def submit(key: str) -> Any:
        return server.run_deployment("character/character", {"name": "Aya"}, key, flow_run_name="Aya")

    return told_by_prefect(
        submit, server.read_flow_run, lambda run, state: server.set_flow_run_state(run, State(state))
    )


def test_prefect_of_the_nights_answers_as_prefect_does(prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment
    from prefect.states import Completed, Crashed, Pending, Running

    states = {"PENDING": Pending, "RUNNING": Running, "COMPLETED": Completed, "CRASHED": Crashed}

    @flow
    def character(name: str = "") -> None:
        """Never run."""

    with get_client(sync_client=True) as client:
        made = client.create_deployment(client.create_flow(character), name="character")
        assert made

        def submit(key: str) -> Any:
            return run_deployment(
                "character/character",
                parameters={"name": "Aya"},
                timeout=0,
                as_subflow=False,
                idempotency_key=key,
                flow_run_name="Aya",
            )

        real = told_by_prefect(
            submit, client.read_flow_run, lambda run, state: client.set_flow_run_state(run, states[state]())
        )
    assert of_the_nights() == real


def test_a_refusal_is_one_that_the_pool_waits_for() -> None:
    """What the nights raise for Prefect is what `flows.pool` takes for an outage."""
    from prefect.exceptions import PrefectHTTPStatusError

    from flows import pool
    from nights.night import Night

    night = Night(1)
    for _ in range(8):
        error = night._refusal("prefect", "read_flow_run")
        assert isinstance(error, PrefectHTTPStatusError | httpx.TransportError)
        answers = iter([error, SimpleNamespace(id="run")])

        def call(answers: Any = answers) -> Any:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        paused, pool.FIRST_PAUSE = pool.FIRST_PAUSE, 0.0
        try:
            assert pool.patiently(call, "asked").id == "run"
        finally:
            pool.FIRST_PAUSE = paused
