"""The tracker that writes to MLflow (the only importer of mlflow, and only when a run is opened).

`MlflowClient` with explicit run ids throughout: MLflow's active run is thread-local and gets lost in tasks. A run is found
again by its tag `charengine.key`; whatever MLflow does, training goes on.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from charengine.adapter.card import pick_facts
from charengine.machine.addresses import database_uri, running_services, tracking_uri
from charengine.machine.environment import apply_defaults
from charengine.machine.full_disks import warn
from charengine.machine.home import Home
from charengine.machine.locks import reach_other_machines, single_flight
from charengine.machine.processes import this_process
from charengine.machine.shared import open_store
from charengine.tracking.attempts import Attempts
from charengine.tracking.catching_up import catch_up
from charengine.tracking.database import initialise_database
from charengine.tracking.journal import JOURNAL, Journal, JournalTracker
from charengine.tracking.pages import PICK_TAG, Pages
from charengine.tracking.postponed import Postponing
from charengine.tracking.protocol import KEY_TAG, PROCESS_TAG, Status
from charengine.tracking.registry import DIGEST_LIMIT, RunModels, cut, pick_file
from charengine.tracking.spool import SPOOL, MetricSpool, NotTold, Point
from charengine.tracking.views import KIND, KIND_TAG, NOTE_TAG, child_name, inherited, views_to_seed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from PIL.Image import Image

log = logging.getLogger(__name__)

PARAM_LIMIT, PARAMS_PER_CALL = 6000, 100  # MLflow's own


def open_run(
    home: Home, project: str, name: str, key: str, params: Mapping[str, object], tags: Mapping[str, str]
) -> MLflowTracker:
    """The run with this key in the project's experiment: reopened if it exists, else started.

    Raises:
        MlflowException: MLflow cannot be reached.
    """
    connection = Connection(home, project)
    try:
        catch_up(connection, partial(_open, connection), partial(_known, connection), own=key)
        return _open(connection, name, key, parent=None, params=params, tags=tags)
    except BaseException:
        connection.spool.close()
        raise


def tell_what_waits(home: Home, project: str) -> None:
    """What a run does before it begins, without a run, by a process of `charengine up`.

    Raises:
        MlflowException: MLflow cannot be reached.
    """
    # a server elsewhere keeps files where it says, not on this machine
    connection = Connection(home, project, of_up=not reach_other_machines())
    catch_up(connection, partial(_open, connection), partial(_known, connection), own="")
    connection.spool.close()


class Connection(Attempts):
    """One connection to MLflow (`of_up`: known to be this home's own): client, experiment and background writer, shared by a run and its children."""

    def __init__(self, home: Home, project: str, of_up: bool = False) -> None:
        super().__init__(home.mlflow)
        apply_defaults(home)
        from mlflow import MlflowClient

        self.uri = tracking_uri(home)
        if self.uri == database_uri(home):
            initialise_database(home)
        self.client: MlflowClient = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.experiment_id = self._experiment(home, project, of_up)
        self.attempt("seeding the views", self._seed_views)
        self.spool = MetricSpool(home.mlflow / SPOOL, self.send)
        self.journal = home.mlflow / JOURNAL
        self.locks = home.locks
        self._home = home

    def _experiment(self, home: Home, project: str, of_up: bool) -> str:
        found = self.client.get_experiment_by_name(project)
        if found:
            return str(found.experiment_id)
        services = running_services(home)
        here = of_up or self.uri == database_uri(home) or (services is not None and services.mlflow == self.uri)
        # an absolute place when the server is on this machine; SQLite's default depends on where one stands
        location = (home.mlflow / "artifacts").as_uri() if here else None
        with single_flight(home.locks / "mlflow-experiment.lock", "MLflow's experiment is being made"):
            found = self.client.get_experiment_by_name(project)
            return str(found.experiment_id if found else self.client.create_experiment(project, location, KIND))

    def _seed_views(self) -> None:
        """Views as this version has them; one that the user changed stays as it is."""
        there = self.client.get_experiment(self.experiment_id).tags
        for name, value in views_to_seed(there).items():
            self.client.set_experiment_tag(self.experiment_id, name, value)

    def unfinished_keys(self) -> list[str]:
        """Keys of the runs that MLflow believes to run, and of those whose metrics wait in the spool."""
        found = [*self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'")]
        # a list: of a run that MLflow has not, as after a new database, nothing is said
        ids = ", ".join(f"'{run_id}'" for run_id in self.spool.waiting())
        found += self.client.search_runs([self.experiment_id], f"attributes.run_id IN ({ids})") if ids else []
        return [*dict.fromkeys(run.data.tags[KEY_TAG] for run in found if KEY_TAG in run.data.tags)]

    def status_of(self, key: str, ended: Status) -> Status:
        """What a run is in MLflow whose last process ended so: finished once all of it is kept, whatever came later."""
        return "FINISHED" if open_store(self._home).has_result(key) else ended

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
    delivers: bool = False,
) -> MLflowTracker:
    """The run with this key, begun or begun again; while a journal is delivered a run that is there keeps status and owner."""
    owner = {} if delivers else {PROCESS_TAG: this_process()}
    with single_flight(connection.locks / "mlflow-runs.lock", "another process opens a run of MLflow"):
        run = _find(connection, key)
        if run is None:
            parentage = {"mlflow.parentRunId": parent.run_id} if parent else {}
            own = {KEY_TAG: key, **owner, **parentage, **cut(tags)}
            run = connection.client.create_run(connection.experiment_id, run_name=name, tags=own)
            before = ""
        else:
            before = run.info.status
            if before != "RUNNING" and not delivers:
                connection.client.update_run(run.info.run_id, status="RUNNING")
    tracker = MLflowTracker(connection, run, key, parent, before, delivers)
    tracker.log_params(params)
    told = {name: value for name, value in tags.items() if name != NOTE_TAG or name not in run.data.tags}
    tracker.set_tags({**told, **owner})  # a description that the user changed stays
    connection.spool.recover(tracker.run_id, tracker.delivered_steps)
    return tracker


def _known(connection: Connection, key: str) -> MLflowTracker | None:
    """The run with this key as it is, neither opened nor made."""
    run = _find(connection, key)
    return MLflowTracker(connection, run, key, None, run.info.status, delivers=True) if run else None


def _find(connection: Connection, key: str) -> Run | None:
    runs = connection.client.search_runs(
        [connection.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", order_by=["attributes.start_time ASC"], max_results=1
    )
    return runs[0] if runs else None


class MLflowTracker(Pages, Postponing):
    """One open MLflow run."""

    _connection: Connection

    def __init__(
        self,
        connection: Connection,
        run: Run,
        key: str,
        parent: MLflowTracker | None,
        before: str = "",
        delivers: bool = False,
    ) -> None:
        super().__init__(connection.uri, connection.experiment_id)
        self._connection = connection
        self._key = key
        self._parent = parent
        self.status_before = before  # of the run, when it was opened again
        self.process_before = run.data.tags.get(PROCESS_TAG, "")
        self._delivers = delivers  # a journal: nothing is postponed again
        self._postponed: JournalTracker | None = None  # what MLflow did not take, and all that came after it
        self._known_params = dict(run.data.params)
        self._known_tags = dict(run.data.tags)
        self._known_metrics = frozenset(run.data.metrics)  # of earlier processes: only their history is asked
        self._delivered: dict[str, frozenset[int]] = {}
        self._last: dict[str, int] = {}
        self._name = run.info.run_name or key
        self.run_id = run.info.run_id
        self._monitor: Any = None  # of MLflow, which gives it no types

    @property
    def key(self) -> str:
        """Under which the run is found again."""
        return self._key

    def child(
        self, name: str, *, key: str, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
    ) -> MLflowTracker | JournalTracker:
        """The child run tagged with this key: reopened if it exists, else started under this run, whose name its own begins with.

        Children of the character's run are found by their stage key alone, whatever run made them; deeper ones by their
        parent's key and their own.
        """
        full = key if self._parent is None else f"{self._key}/{key}"
        name = child_name(name, self._name, self._parent is not None)
        told = inherited(self._known_tags) | dict(tags or {})
        try:
            tracker = _open(self._connection, name, full, self, params or {}, told)
        except Exception as error:  # MLflow went away meanwhile: written down, and sent by the next run that reaches it
            journal = Journal(folder := self._connection.journal)
            warn(log, folder, "MLflow: %s cannot be opened (%s)", name, (str(error).splitlines() or [""])[0][:300])
            return JournalTracker(journal, name, full, (self._name, self._key), params or {}, told)
        if told.get(KIND_TAG) == "train":
            tracker.watch_machine()
        return tracker

    def last_step(self, metric: str = "train/loss") -> int:
        """Highest step already logged for a metric, sent or spooled; -1 when there is none, or MLflow does not say."""
        try:
            return self._last_step(metric)
        except NotTold:
            return -1

    def _last_step(self, metric: str) -> int:
        if metric not in self._last:
            delivered = max(self.delivered_steps(metric), default=-1)
            self._last[metric] = max(delivered, self._connection.spool.written_step(self.run_id, metric))
        return self._last[metric]

    def delivered_steps(self, metric: str) -> frozenset[int]:
        """The steps of a metric that MLflow held when this run was opened.

        Raises:
            NotTold: MLflow does not say.
        """
        if metric not in self._known_metrics:
            return frozenset()
        if metric not in self._delivered:
            history = self._connection.attempt(
                f"history of {metric}", lambda: self._client.get_metric_history(self.run_id, metric)
            )
            if history is None:
                raise NotTold(f"MLflow does not say which steps of {metric} it holds")
            self._delivered[metric] = frozenset(point.step for point in history)
        return self._delivered[metric]

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters that the run does not have yet; MLflow refuses a changed value."""
        from mlflow.entities import Param

        fresh = {key: str(value)[:PARAM_LIMIT] for key, value in params.items() if key not in self._known_params}
        batch = [Param(key, value) for key, value in fresh.items()]
        for start in range(0, len(batch), PARAMS_PER_CALL):
            part = batch[start : start + PARAMS_PER_CALL]
            later = partial(JournalTracker.log_params, params={param.key: param.value for param in part})
            self._tell("params", partial(self._client.log_batch, self.run_id, params=part), later)
        self._known_params |= fresh

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; may change."""
        from mlflow.entities import RunTag

        changed = {key: value for key, value in cut(tags).items() if self._known_tags.get(key) != value}
        if changed:
            batch = [RunTag(key, value) for key, value in changed.items()]
            self._tell(
                "tags", lambda: self._client.log_batch(self.run_id, tags=batch), lambda later: later.set_tags(changed)
            )
            self._known_tags |= changed

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Buffered and sent in the background; steps that the run already holds are skipped."""
        try:
            fresh = {key: value for key, value in metrics.items() if step > self._last_step(key)}
        except NotTold:  # whoever delivers the journal asks again
            self._later().log_metrics(metrics, step)
            return
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

        self._send(f"picture {name}", deliver, lambda later: later.log_image(picture, name, step))

    def log_bytes(self, data: bytes, name: str) -> None:
        """A file artifact; folders in `name` are kept."""

        def deliver() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                path.write_bytes(data)
                parent = str(Path(name).parent)
                self._client.log_artifact(self.run_id, str(path), None if parent == "." else parent)

        self._send(f"file {name}", deliver, lambda later: later.log_bytes(data, name))

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

        self._send("dataset", deliver, lambda later: later.log_dataset(name, digest, tags))
        self.set_tags({"charengine.dataset_digest": digest, "charengine.dataset_name": name})

    def log_checkpoint(self, adapter: bytes, step: int, metrics: Mapping[str, float]) -> str | None:
        """An adapter as a logged model, once per step; its id."""
        tag = f"charengine.checkpoint.{step}"
        if tag not in self._known_tags:
            name, facts = f"{self._name}-step-{step}", {"checkpoint_step": str(step)}
            model = self._tell(
                f"checkpoint {step}",
                lambda: self._models.log(adapter, name, step, metrics, facts),
                lambda later: later.log_checkpoint(adapter, step, metrics),
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
        version = self._tell(
            "registering the pick",
            lambda: self._models.register(name, adapter, step, told, numbers),
            lambda later: later.register_pick(name, adapter, step, strength, metrics, rescaled, facts),
        )
        if version:
            self.set_tags(
                {PICK_TAG: pick_file(name, version), "charengine.registered": f"models:/{name}/{version.version}"}
            )

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

    def sync(self) -> None:
        """The spool is on the disk, and what MLflow did not take; a disk that was waited for in vain is not waited for twice."""
        synced = self._connection.spool.sync(self.run_id)
        if self._postponed:
            self._postponed.sync(None if synced else ())

    def finish(self, status: Status = "FINISHED") -> None:
        """Deliver what is queued and close the run; the character's own run also ends the background writer."""
        status = self._connection.status_of(self._key, status)
        if self._monitor:
            self._monitor.finish()  # raises nothing
        if not self._connection.spool.drain(self.run_id, ended=status):
            self._later()  # whoever delivers that opens the run, and so its metrics
        close = partial(self._client.set_terminated, self.run_id, status)
        self._connection.attempt("closing", close, always=True, otherwise=self._later)
        if self._postponed:
            self._postponed.finish(status)
        if self._parent is None:
            self._connection.spool.close()

    @property
    def _models(self) -> RunModels:
        return RunModels(self._client, self._connection.experiment_id, self.run_id, self._known_tags)

    @property
    def _client(self) -> MlflowClient:
        return self._connection.client
