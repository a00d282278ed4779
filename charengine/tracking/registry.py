"""Adapters in MLflow: logged models of a run, and the character's registered versions."""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charengine.adapter.card import model_card
from charengine.tracking.model_card import WEIGHTS, is_better, write_model
from charengine.tracking.views import NOTE_TAG, inherited

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

LOADED_WITH = ("diffusers", "transformers", "torch", "peft", "safetensors", "accelerate")  # as MLflow lists them
TAG_LIMIT, DIGEST_LIMIT = 5000, 36  # MLflow's own


@dataclass(frozen=True)
class RunModels:
    """The models of one MLflow run.

    Args:
        client: of the server.
        experiment_id: that the run belongs to.
        run_id: of the run.
        tags: of the run, as they are when a model is logged.
    """

    client: MlflowClient
    experiment_id: str
    run_id: str
    tags: Mapping[str, str]

    def log(
        self, data: bytes, name: str, step: int, metrics: Mapping[str, float], facts: Mapping[str, str]
    ) -> LoggedModel:
        """An adapter as a logged model of the run, with its numbers."""
        from mlflow.entities import LoggedModelOutput, Metric

        dataset, digest = (self.tags.get(f"charengine.dataset_{part}") for part in ("name", "digest"))
        told = inherited(self.tags) | ({"dataset": f"{dataset} {digest}"} if dataset and digest else {}) | dict(facts)
        tags = cut({**told, NOTE_TAG: model_card(told)})
        model = self.client.create_logged_model(
            self.experiment_id, name, self.run_id, tags, {"step": str(step)}, model_type="adapter"
        )
        with tempfile.TemporaryDirectory() as folder:
            self.client.log_model_artifacts(
                model.model_id, str(write_model(Path(folder), name, data, told, _save_for_diffusers))
            )
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        now, of = int(time.time() * 1000), {"model_id": model.model_id}
        if dataset and digest:
            of |= {"dataset_name": dataset, "dataset_digest": digest[:DIGEST_LIMIT]}
        points = [Metric(key, value, now, step, **of) for key, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=points, synchronous=True)
        return model

    def register(
        self, name: str, data: bytes, step: int, facts: Mapping[str, str], metrics: Mapping[str, float]
    ) -> ModelVersion:
        """The run's version of the character: the one that a killed process made, or a new one; champion if it is the best."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # it exists: this is a later version of the same character
            self.client.create_registered_model(name)
        tags = {**facts, **({"score": str(metrics["score"])} if "score" in metrics else {})}
        version = self._registered(name) or self._new_version(name, data, step, facts, metrics, tags)
        champion = self.client.get_registered_model(name).aliases.get("champion")
        if champion is None or not is_better(self.client.get_model_version(name, champion).tags, tags):
            self.client.set_registered_model_alias(name, "champion", version.version)
        return version

    def _registered(self, name: str) -> ModelVersion | None:
        """The version that this run has registered already."""
        found = self.client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'", max_results=1)
        return found[0] if found else None

    def _new_version(
        self,
        name: str,
        data: bytes,
        step: int,
        facts: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> ModelVersion:
        model = self.log(data, f"{name}-recommended", step, metrics, facts)
        return self.client.create_model_version(
            name,
            source=model.artifact_location,  # `models:/<id>` is looked up at the process's default address instead
            run_id=self.run_id,
            model_id=model.model_id,
            tags=cut(tags),
            description=model_card(facts),
        )


def pick_file(name: str, version: ModelVersion) -> str:
    """Where the weights of a registered pick lie: MODEL/FILE.

    The model is taken from the place of its files, `…/models/MODEL/artifacts`: MLflow's answers leave `model_id` out.
    """
    model = str(version.source).rpartition("/models/")[2].partition("/")[0]
    return f"{model}/{WEIGHTS}/{name}-recommended.safetensors"


def cut(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags no longer than MLflow takes them."""
    return {key: str(value)[:TAG_LIMIT] for key, value in tags.items()}


def _save_for_diffusers(weights: Path, whole: Path, base: str, facts: dict[str, str]) -> None:
    """The folder of an adapter as a model that `mlflow.diffusers` and `mlflow.pyfunc` load."""
    with warnings.catch_warnings(action="ignore"):  # MLflow's own, about type hints of its own
        import mlflow.diffusers
        from mlflow.models import Model

        # a folder stands for the base model until it is written: MLflow asks the hub about a name that is no path
        mlflow.diffusers.save_model(
            str(weights), str(whole), str(weights), pip_requirements=_requirements(), metadata=facts
        )
        saved = Model.load(str(whole))
        saved.flavors["diffusers"]["base_model"] = base
        saved.save(str(whole / "MLmodel"))


def _requirements() -> list[str]:
    """What MLflow installs to load an adapter: the versions that are here, as PyPI has them.

    Left to itself MLflow writes the same list, and a warning about every build of torch that is a platform's own (`+cpu`, `+rocm6.4`).
    """
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in LOADED_WITH]
