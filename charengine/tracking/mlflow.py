"""The tracker that writes to MLflow (the only importer of mlflow, and only when a run is opened).

`MlflowClient` with explicit run ids throughout: MLflow's active run is thread-local and gets lost in tasks. A run is found
again by its tag `charengine.key`; whatever MLflow does, training goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from charengine.adapter.card import model_card, pick_facts
from charengine.machine.addresses import database_uri, running_services, tracking_uri
from charengine.machine.environment import apply_defaults
from charengine.machine.home import Home
from charengine.machine.locks import single_flight
from charengine.tracking.attempts import Attempts
from charengine.tracking.catching_up import catch_up
from charengine.tracking.journal import JOURNAL, Journal, JournalTracker
from charengine.tracking.model_card import WEIGHTS, is_better, write_model
from charengine.tracking.pages import PICK_TAG, Pages
from charengine.tracking.protocol import Status
from charengine.tracking.spool import MetricSpool, Point
from charengine.tracking.views import KIND_TAG, inherited, view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from PIL.Image import Image

log = logging.getLogger(__name__)

KEY_TAG = "charengine.key"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's page opens on training runs, not on chat traces
PARAM_LIMIT, TAG_LIMIT, PARAMS_PER_CALL, DIGEST_LIMIT = 6000, 5000, 100, 36  # MLflow's own


def open_run(
    home: Home, project: str, name: str, key: str, params: Mapping[str, object], tags: Mapping[str, str]
) -> MLflowTracker:
    """The run with this key in the project's experiment: reopened if it exists, else started.

    Raises:
        MlflowException: MLflow cannot be reached.
    """
    connection = Connection(home, project)
    try:
        catch_up(connection.journal, connection, partial(_open, connection))
        return _open(connection, name, key, parent=None, params=params, tags=tags)
    except BaseException:
        connection.spool.close()
        raise


def initialise_database(home: Home) -> None:
    """Create MLflow's tables once, under a lock, in WAL mode: several first processes at once break the database."""
    import sqlite3

    import mlflow

    database = home.mlflow / "mlflow.db"
    marker = home.mlflow / f"schema-{mlflow.__version__}"
    if marker.exists():
        return
    with single_flight(home.locks / "mlflow-database.lock", "MLflow's database is being made"):
        if marker.exists():
            return
        if database.exists():
            _upgrade(database_uri(home))
        mlflow.MlflowClient(tracking_uri=database_uri(home)).search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        marker.touch()


def _upgrade(uri: str) -> None:
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True)


class Connection(Attempts):
    """One connection to MLflow: client, experiment and the background writer, shared by a run and its children."""

    def __init__(self, home: Home, project: str) -> None:
        super().__init__()
        apply_defaults(home)
        from mlflow import MlflowClient

        self.uri = tracking_uri(home)
        if self.uri == database_uri(home):
            initialise_database(home)
        self.client: MlflowClient = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.experiment_id = self._experiment(home, project)
        self.attempt("seeding the views", self._seed_views)
        self.spool = MetricSpool(home.mlflow / "spool", self.send)
        self.journal = home.mlflow / JOURNAL

    def _experiment(self, home: Home, project: str) -> str:
        found = self.client.get_experiment_by_name(project)
        if found:
            return str(found.experiment_id)
        services = running_services(home)
        here = self.uri == database_uri(home) or (services is not None and services.mlflow == self.uri)
        # an absolute place when the server is on this machine; SQLite's default depends on where one stands
        location = (home.mlflow / "artifacts").as_uri() if here else None
        with single_flight(home.locks / "mlflow-experiment.lock", "MLflow's experiment is being made"):
            found = self.client.get_experiment_by_name(project)
            return str(found.experiment_id if found else self.client.create_experiment(project, location, KIND))

    def _seed_views(self) -> None:
        """Views that are not there yet; one that the user changed stays as it is."""
        there = self.client.get_experiment(self.experiment_id).tags
        for name, value in view_tags().items():
            if name not in there:
                self.client.set_experiment_tag(self.experiment_id, name, value)

    def send(self, run_id: str, points: list[Point]) -> None:
        """Metrics of one run, at once."""
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.when, point.step) for point in points]
        self.client.log_batch(run_id, metrics=metrics, synchronous=True)


def _open(
    connection: Connection,
    name: str,
    key: str,
    parent: MLflowTracker | None,
    params: Mapping[str, object],
    tags: Mapping[str, str],
) -> MLflowTracker:
    run = _find(connection, key)
    if run is None:
        parentage = {"mlflow.parentRunId": parent.run_id} if parent else {}
        run = connection.client.create_run(
            connection.experiment_id, run_name=name, tags={KEY_TAG: key, **parentage, **_cut(tags)}
        )
    elif run.info.status != "RUNNING":
        connection.client.update_run(run.info.run_id, status="RUNNING")
    tracker = MLflowTracker(connection, run, key, parent)
    tracker.log_params(params)
    tracker.set_tags(tags)
    connection.spool.recover(tracker.run_id, tracker.delivered_step)
    return tracker


def _find(connection: Connection, key: str) -> Run | None:
    runs = connection.client.search_runs(
        [connection.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", order_by=["attributes.start_time ASC"], max_results=1
    )
    return runs[0] if runs else None


class MLflowTracker(Pages):
    """One open MLflow run."""

    def __init__(self, connection: Connection, run: Run, key: str, parent: MLflowTracker | None) -> None:
        super().__init__(connection.uri, connection.experiment_id)
        self._connection = connection
        self._key = key
        self._parent = parent
        self._known_params = dict(run.data.params)
        self._known_tags = dict(run.data.tags)
        self._known_metrics = frozenset(run.data.metrics)  # of earlier processes: only their history is asked
        self._delivered: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._name = run.info.run_name or key
        self.run_id = run.info.run_id
        self._monitor: Any = None  # of MLflow, which gives it no types

    def child(
        self,
        name: str,
        *,
        key: str,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> MLflowTracker | JournalTracker:
        """The child run tagged with this key: reopened if it exists, else started under this run, whose name its own begins with.

        Children of the character's run are found by their stage key alone, whatever run made them; deeper ones by their
        parent's key and their own.
        """
        full = key if self._parent is None else f"{self._key}/{key}"
        name = f"{self._name} {name}"
        told = inherited(self._known_tags) | dict(tags or {})
        try:
            tracker = _open(self._connection, name, full, self, params or {}, told)
        except Exception as error:  # MLflow went away meanwhile: written down, and sent by the next run that reaches it
            log.warning("MLflow: %s cannot be opened (%s)", name, (str(error).splitlines() or [""])[0][:300])
            journal = Journal(self._connection.journal)
            return JournalTracker(journal, name, full, (self._name, self._key), params or {}, told)
        if told.get(KIND_TAG) == "train":
            tracker.watch_machine()
        return tracker

    def last_step(self, metric: str = "train/loss") -> int:
        """Highest step already logged for a metric, sent or spooled; -1 when there is none."""
        if metric not in self._last:
            spooled = self._connection.spool.written_step(self.run_id, metric)
            self._last[metric] = max(spooled, self.delivered_step(metric))
        return self._last[metric]

    def delivered_step(self, metric: str) -> int:
        """Highest step of a metric that MLflow holds; -1 when there is none."""
        if metric not in self._known_metrics:
            return -1
        if metric not in self._delivered:
            history = self._connection.attempt(
                f"history of {metric}", lambda: self._connection.client.get_metric_history(self.run_id, metric)
            )
            self._delivered[metric] = max((point.step for point in history or []), default=-1)
        return self._delivered[metric]

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters that the run does not have yet; MLflow refuses a changed value."""
        from mlflow.entities import Param

        fresh = {key: str(value)[:PARAM_LIMIT] for key, value in params.items() if key not in self._known_params}
        batch = [Param(key, value) for key, value in fresh.items()]
        for start in range(0, len(batch), PARAMS_PER_CALL):
            part = batch[start : start + PARAMS_PER_CALL]
            self._connection.attempt("params", partial(self._client.log_batch, self.run_id, params=part))
        self._known_params |= fresh

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; may change."""
        from mlflow.entities import RunTag

        changed = {key: value for key, value in _cut(tags).items() if self._known_tags.get(key) != value}
        if changed:
            batch = [RunTag(key, value) for key, value in changed.items()]
            self._connection.attempt("tags", lambda: self._client.log_batch(self.run_id, tags=batch))
            self._known_tags |= changed

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffered and sent in the background; steps that the run already holds are skipped."""
        fresh = {key: value for key, value in metrics.items() if step > self.last_step(key)}
        if fresh:
            self._connection.spool.add(self.run_id, fresh, step)
            self._last |= dict.fromkeys(fresh, step)

    def log_image(self, image: Image, name: str, step: int | None = None) -> None:
        """A picture: with a step it joins MLflow's image grid, without it becomes `images/<name>.png`."""
        picture = image.copy()

        def deliver() -> None:
            if step is None:
                self._client.log_image(self.run_id, picture, artifact_file=f"images/{name}.png")
            else:
                self._client.log_image(self.run_id, picture, key=name, step=step, synchronous=True)

        self._connection.spool.submit(f"picture {name}", deliver)

    def log_bytes(self, data: bytes, name: str) -> None:
        """A file artifact; folders in `name` are kept."""

        def deliver() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                path.write_bytes(data)
                parent = str(Path(name).parent)
                self._client.log_artifact(self.run_id, str(path), None if parent == "." else parent)

        self._connection.spool.submit(f"file {name}", deliver)

    def log_dataset(self, name: str, digest: str, tags: Mapping[str, str]) -> None:
        """The dataset as an input of the run."""
        if self._known_tags.get("charengine.dataset_digest") == digest:
            return

        def deliver() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            source = json.dumps({"tags": dict(tags)})
            dataset = Dataset(name, digest[:DIGEST_LIMIT], source_type="code", source=source)
            given = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
            self._client.log_inputs(self.run_id, datasets=[given])

        self._connection.spool.submit("dataset", deliver)
        self.set_tags({"charengine.dataset_digest": digest, "charengine.dataset_name": name})

    def log_checkpoint(self, adapter: bytes, step: int, metrics: Mapping[str, float]) -> str | None:
        """An adapter as a logged model, once per step; its id."""
        tag = f"charengine.checkpoint.{step}"
        if tag not in self._known_tags:
            name, facts = f"{self._name}-step-{step}", {"checkpoint_step": str(step)}
            model = self._connection.attempt(
                f"checkpoint {step}", lambda: self._log_model(adapter, name, step, metrics, facts)
            )
            if model:
                self.set_tags({tag: model.model_id})
                self._last |= dict.fromkeys(metrics, step)  # they went with the model
        return self._known_tags.get(tag)

    def register_pick(
        self,
        name: str,
        adapter: bytes,
        step: int,
        strength: float,
        metrics: Mapping[str, float],
        rescaled: bool = True,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Register the recommended adapter as the newest version of the character; `champion` when none before is better."""
        if "charengine.registered" in self._known_tags:
            return
        told = {**facts, **pick_facts(step, strength, rescaled)}
        numbers = {**metrics, "strength": strength}
        version = self._connection.attempt(
            "registering the pick", lambda: self._register(name, adapter, step, told, numbers)
        )
        if version:
            self.set_tags({"charengine.registered": f"models:/{name}/{version}"})

    def watch_machine(self) -> None:
        """Log memory, processor, disk and GPU every ten seconds, on a thread of MLflow's, until the run is finished."""
        from mlflow.system_metrics import system_metrics_monitor

        made: Any = system_metrics_monitor.SystemMetricsMonitor  # MLflow gives it no types
        monitor = self._connection.attempt(
            "system metrics", lambda: made(self.run_id, resume_logging=True, tracking_uri=self._uri)
        )
        if monitor:
            monitor.start()
            self._monitor = monitor

    def finish(self, status: Status = "FINISHED") -> None:
        """Deliver what is queued and close the run; the character's own run also ends the background writer."""
        if self._monitor:
            self._monitor.finish()  # raises nothing
        self._connection.spool.drain(self.run_id)
        self._connection.attempt("closing", lambda: self._client.set_terminated(self.run_id, status), always=True)
        if self._parent is None:
            self._connection.spool.close()

    @property
    def _client(self) -> MlflowClient:
        return self._connection.client

    def _log_model(
        self, data: bytes, name: str, step: int, metrics: Mapping[str, float], facts: Mapping[str, str]
    ) -> LoggedModel:
        from mlflow.entities import LoggedModelOutput, Metric

        dataset, digest = (self._known_tags.get(f"charengine.dataset_{part}") for part in ("name", "digest"))
        told = (
            inherited(self._known_tags)
            | ({"dataset": f"{dataset} {digest}"} if dataset and digest else {})
            | dict(facts)
        )
        tags = _cut({**told, "mlflow.note.content": model_card(told)})
        model = self._client.create_logged_model(
            self._connection.experiment_id, name, self.run_id, tags, {"step": str(step)}, model_type="adapter"
        )
        with tempfile.TemporaryDirectory() as folder:
            self._client.log_model_artifacts(
                model.model_id, str(write_model(Path(folder), name, data, told, _save_for_diffusers))
            )
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        now, of = int(time.time() * 1000), {"model_id": model.model_id}
        if dataset and digest:
            of |= {"dataset_name": dataset, "dataset_digest": digest[:DIGEST_LIMIT]}
        points = [Metric(key, value, now, step, **of) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=points, synchronous=True)
        return model

    def _register(
        self, name: str, data: bytes, step: int, facts: Mapping[str, str], metrics: Mapping[str, float]
    ) -> str:
        from mlflow.exceptions import MlflowException

        model = self._log_model(data, f"{name}-recommended", step, metrics, facts)
        self.set_tags({PICK_TAG: f"{model.model_id}/{WEIGHTS}/{name}-recommended.safetensors"})
        with contextlib.suppress(MlflowException):  # it exists: this is a later version of the same character
            self._client.create_registered_model(name)
        tags = {**facts, **({"score": str(metrics["score"])} if "score" in metrics else {})}
        version = self._client.create_model_version(
            name,
            source=model.artifact_location,  # `models:/<id>` is looked up at the process's default address instead
            run_id=self.run_id,
            model_id=model.model_id,
            tags=_cut(tags),
            description=model_card(facts),
        )
        champion = self._client.get_registered_model(name).aliases.get("champion")
        if champion is None or not is_better(self._client.get_model_version(name, champion).tags, tags):
            self._client.set_registered_model_alias(name, "champion", version.version)
        return str(version.version)


def _save_for_diffusers(weights: Path, whole: Path, base: str, facts: dict[str, str]) -> None:
    """The folder of an adapter as a model that `mlflow.diffusers` and `mlflow.pyfunc` load."""
    with warnings.catch_warnings(action="ignore"):  # MLflow's own, about type hints of its own
        import mlflow.diffusers
        from mlflow.models import Model

        # a folder stands for the base model until it is written: MLflow asks the hub about a name that is no path
        mlflow.diffusers.save_model(str(weights), str(whole), str(weights), metadata=facts)
        saved = Model.load(str(whole))
        saved.flavors["diffusers"]["base_model"] = base
        saved.save(str(whole / "MLmodel"))


def _cut(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value)[:TAG_LIMIT] for key, value in tags.items()}
