"""The training stage: cached data → adapter checkpoints, resumable at any step."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from charengine.adapter import Adapter, inject, save_adapter
from charengine.adapter_files import read_adapter
from charengine.adapter_metadata import adapter_metadata
from charengine.config import TrainSettings
from charengine.errors import StageFailed
from charengine.models import Diffusion
from charengine.records import AdapterRecord, CheckpointRecord, DatasetRecord, LossPoint
from charengine.store import Store
from charengine.tracking import NullTracker, Tracker
from charengine.training.data import TrainingData, encode_dataset
from charengine.training.optimizers import build_optimizer
from charengine.training.plan import Plan, choose_plan, prepare_unet
from charengine.training.sampler import groups_of_step, hash_seed
from charengine.training.schedule import learning_rate
from charengine.training.state import History, load_state, save_state
from charengine.training.step import BUFFER, TrainStep
from charengine.training.storage import StackedParameters
from charengine.training.validation import Validation

log = logging.getLogger(__name__)

STAGE_VERSION = 1
READ_EVERY = 10  # steps between reads of the losses on a GPU, where each read waits for the device
SMOOTHING = 0.98


class TrainingStopped(StageFailed):
    """Asked to stop; the state is saved and the same call continues from it."""


class TrainingDiverged(StageFailed):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Progress:
    """How far training is; memory in GiB (0 without a GPU)."""

    step: int
    steps: int
    loss: float
    smoothed: float
    learning_rate: float
    ms_per_step: float
    seconds_left: float
    memory: float


def train_adapter(
    dataset: DatasetRecord,
    settings: TrainSettings,
    diffusion: Diffusion,
    store: Store,
    *,
    seed: int,
    state_dir: Path,
    tracker: Tracker = NullTracker(),
    recipe: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Progress], None] | None = None,
) -> AdapterRecord:
    """Train an adapter on a character's views.

    Args:
        dataset: views and captions.
        settings: the recipe.
        diffusion: the base model; its text encoders and VAE are unloaded before the U-Net is loaded.
        store: where checkpoints go.
        seed: of the initial adapter and of all noise.
        state_dir: where the resumable state lives; the same call finds it there and continues, bit for bit.
        tracker: the run that losses, parameters and checkpoints are logged to.
        recipe: the whole resolved config, written into the files.
        should_stop: asked at every step.
        on_step: told at every read of the losses.

    Raises:
        BadInput: the data or `continue_from` cannot be used.
        OutOfBudget: no plan fits `budget_gib`; carries the smallest budget that would.
        TrainingStopped: `should_stop` said so; the state is saved.
        TrainingDiverged: the loss became NaN.
    """
    with _determinism(settings):
        data = encode_dataset(dataset, settings, diffusion, store)
        training = _Training(dataset, settings, diffusion, store, data, seed, state_dir, tracker, recipe)
        try:
            return training.run(should_stop, on_step)
        finally:
            training.close()


class _Training:
    """One run of the stage: the adapter on the U-Net, its optimizer, its history."""

    def __init__(
        self,
        dataset: DatasetRecord,
        settings: TrainSettings,
        diffusion: Diffusion,
        store: Store,
        data: TrainingData,
        seed: int,
        state_dir: Path,
        tracker: Tracker,
        recipe: dict[str, Any] | None,
    ) -> None:
        self.dataset, self.settings, self.store, self.seed = dataset, settings, store, seed
        self.data, self.state_dir, self.tracker, self.recipe = data, state_dir, tracker, recipe
        self.key = state_key(dataset, settings, diffusion, seed)
        self.unet = diffusion.unet()
        alphas = diffusion.alphas_cumprod()
        saved = load_state(state_dir, self.key)
        self.history, tensors = saved or (History(), {})
        self.plan = Plan(**self.history.plan) if saved else choose_plan(self.unet, settings, data, alphas)
        self.history.plan = self.plan.facts()
        log.info("memory plan: %s", self.plan)
        prepare_unet(self.unet, self.plan)
        self.adapter: Adapter = inject(self.unet, settings, seed=hash_seed(seed, 0))
        if settings.continue_from and not saved:
            self.adapter.load(_continued(settings))
        self.parameters = StackedParameters(self.adapter.parameters(), self.plan.compute_dtype)
        self.optimizer = build_optimizer(settings, self.parameters)
        if saved:
            self._restore(tensors)
        self.step = TrainStep(
            self.unet,
            self.parameters,
            self.optimizer,
            data,
            alphas,
            settings,
            seed=hash_seed(seed, 1),
            micro_batch=self.plan.micro_batch,
            graph=self.plan.graph,
        )
        self.validation = Validation(self.unet, data, alphas, chunk=self.plan.micro_batch or 3, graph=self.plan.graph)
        self.last_logged = tracker.last_step("train/loss")

    def run(self, should_stop: Callable[[], bool], on_step: Callable[[Progress], None] | None) -> AdapterRecord:
        """Step to the end, keeping checkpoints, validations and states on the way."""
        settings, history = self.settings, self.history
        self._begin()
        started, done_before = time.perf_counter(), history.seconds
        first, unread = history.step, history.step
        saved_at = history.step
        step = history.step
        while step < settings.steps:
            self.step.run(step, groups_of_step(self.data, settings, self.seed, step))
            step += 1
            event = self._event(step)
            if (
                event
                or step - unread >= (READ_EVERY if self.unet.device.type == "cuda" else 1)
                or step - unread == BUFFER
            ):
                self._read(unread, step)
                unread = step
                history.seconds = done_before + time.perf_counter() - started
                if on_step:
                    on_step(self._progress(step, first, time.perf_counter() - started))
            if "validate" in event:
                self._validate(step)
            if "checkpoint" in event:
                self._checkpoint(step)
            stopping = should_stop()
            enough = self._early_stop()
            if stopping or enough or event & {"save", "checkpoint"} or step == settings.steps:
                if unread < step:
                    self._read(unread, step)
                    unread = step
                if enough and history.checkpoints[-1:] and history.checkpoints[-1].step != step:
                    self._checkpoint(step)
                if step != saved_at:
                    self._save(step)
                    saved_at = step
            if stopping and step < settings.steps:
                raise TrainingStopped(
                    f"stopped at step {step} of {settings.steps}; the same command continues from there"
                )
            if enough:
                log.info(
                    "early stop at step %d: no better validation loss for %d validations", step, settings.early_stop
                )
                break
        return self._record()

    def close(self) -> None:
        """Leave the U-Net as it was found."""
        self.adapter.remove()

    # -- parts of a run, in order of use

    def _begin(self) -> None:
        if self.last_logged < 0:
            self.tracker.log_params({f"train.{key}": value for key, value in self.settings.model_dump().items()})
            self.tracker.log_params({f"plan.{key}": value for key, value in self.plan.facts().items()})
        if self.history.base is None:
            self.history.base = self._base_validation()
            self._log_validation(self.history.base, "base")

    def _base_validation(self) -> LossPoint:
        self.optimizer.evaluating(True)
        self.adapter.set_strength(0.0)
        self.adapter.train(False)
        try:
            validation = Validation(
                self.unet, self.data, self.validation.alphas_cumprod, chunk=self.validation.chunk, graph=False
            )
            return validation.measure(0)
        finally:
            self.adapter.set_strength(1.0)
            self.adapter.train()
            self.optimizer.evaluating(False)

    def _event(self, step: int) -> set[str]:
        """What is due after `step` steps."""
        settings = self.settings
        due = set()
        checkpoint = step in checkpoint_steps(settings)
        if checkpoint:
            due.add("checkpoint")
        if checkpoint or (settings.validate_every and step % settings.validate_every == 0):
            due.add("validate")
        if step % settings.save_state_every == 0:
            due.add("save")
        return due

    def _read(self, first: int, last: int) -> None:
        """Take the losses of steps first … last − 1 off the device and log them."""
        history = self.history
        for step, loss in enumerate(self.step.read_losses(first, last), start=first):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss became {loss} at step {step + 1}; lower train.learning_rate "
                    f"(it is {self.settings.learning_rate}) or set train.precision to bf16 or fp32"
                )
            old = history.smoothed[-1] if history.smoothed else loss
            weight = min(SMOOTHING, len(history.smoothed) / (len(history.smoothed) + 1))
            history.losses.append(loss)
            history.smoothed.append(weight * old + (1 - weight) * loss)
            history.rates.append(learning_rate(self.settings, step))
            if step + 1 > self.last_logged:
                metrics = {"train/loss": loss, "train/smoothed_loss": history.smoothed[-1]}
                self.tracker.log_metrics(metrics | {"train/learning_rate": history.rates[-1]}, step + 1)
        history.step = last

    def _progress(self, step: int, first: int, seconds: float) -> Progress:
        each = seconds / max(1, step - first)
        memory = torch.cuda.memory_reserved(self.unet.device) / 2**30 if self.unet.device.type == "cuda" else 0.0
        history = self.history
        return Progress(
            step,
            self.settings.steps,
            history.losses[-1],
            history.smoothed[-1],
            history.rates[-1],
            each * 1000,
            each * (self.settings.steps - step),
            memory,
        )

    def _validate(self, step: int) -> None:
        if self.history.validation and self.history.validation[-1].step == step:
            return
        self.optimizer.evaluating(True)
        self.adapter.train(False)
        try:
            point = self.validation.measure(step)
        finally:
            self.adapter.train()
            self.optimizer.evaluating(False)
        self.history.validation.append(point)
        self._log_validation(point, "validation")

    def _log_validation(self, point: LossPoint, name: str) -> None:
        if point.step <= self.tracker.last_step(f"{name}/loss"):
            return
        metrics = {f"{name}/loss": point.loss}
        metrics |= {f"{name}/view/{view}": loss for view, loss in point.by_view.items()}
        metrics |= {f"{name}/timesteps/{third}": loss for third, loss in point.by_third.items()}
        self.tracker.log_metrics(metrics, point.step)

    def _checkpoint(self, step: int) -> None:
        history = self.history
        data = self._file(step)
        ref = self.store.put(data, f"{self.dataset.trigger}-step{step:06d}.safetensors")
        validation = history.validation[-1].loss if history.validation else None
        loss = history.smoothed[-1]
        model_id = None
        if step > self.tracker.last_step("checkpoint/loss"):
            metrics = {"checkpoint/loss": loss} | ({"checkpoint/validation_loss": validation} if validation else {})
            model_id = self.tracker.log_checkpoint(data, step, metrics)
            self.tracker.log_metrics(metrics, step)
        history.checkpoints.append(
            CheckpointRecord(step=step, adapter=ref, loss=loss, validation_loss=validation, logged_model_id=model_id)
        )

    def _file(self, step: int) -> bytes:
        """The adapter as it is now, as a file."""
        bucket = self.data.views[0]
        metadata = adapter_metadata(
            self.settings,
            name=self.dataset.trigger,
            trigger=self.dataset.trigger,
            captions=self.data.captions,
            resolution=(bucket.width, bucket.height),
            step=step,
            seed=self.seed,
            recipe={**(self.recipe or {}), "dataset_digest": self.dataset.digest},
        )
        self.optimizer.evaluating(True)
        try:
            kind = torch.float32 if self.plan.precision == "fp32" else torch.float16
            return save_adapter(self.adapter.state_dict(kind, self.parameters.named()), metadata)
        finally:
            self.optimizer.evaluating(False)

    def _save(self, step: int) -> None:
        masters = {f"master.{i}": master for i, master in enumerate(self.parameters.masters)}
        optimizer = {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        save_state(self.state_dir, self.key, self.history, masters | optimizer)

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for i, master in enumerate(self.parameters.masters):
                master.copy_(tensors[f"master.{i}"])
        self.parameters.publish()
        device = self.parameters.masters[0].device
        prefix = "optimizer."
        state = {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}
        self.optimizer.load_state(state)
        log.info("continuing from step %d of %d", self.history.step, self.settings.steps)

    def _early_stop(self) -> bool:
        """No validation better than the best one for `early_stop` validations."""
        patience, losses = self.settings.early_stop, [point.loss for point in self.history.validation]
        return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])

    def _record(self) -> AdapterRecord:
        history = self.history
        if self.unet.device.type == "cuda":
            torch.cuda.synchronize(self.unet.device)
        facts = {
            "parameters": float(self.parameters.count()),
            "modules": float(len(self.adapter.modules)),
            "seconds": history.seconds,
            "step_ms": 1000 * history.seconds / max(1, history.step),
            "samples": float(
                sum(len(g.samples) for g in groups_of_step(self.data, self.settings, self.seed, 0)) * history.step
            ),
            "threads": float(torch.get_num_threads()),
        }
        if self.unet.device.type == "cuda":
            facts["peak_gib"] = torch.cuda.max_memory_reserved(self.unet.device) / 2**30
        return AdapterRecord(
            checkpoints=tuple(history.checkpoints),
            steps=history.step,
            trigger=self.dataset.trigger,
            class_noun=self.dataset.class_noun,
            dataset_digest=self.dataset.digest,
            curve=self.store.put(_curve(history), "loss.csv", "text/csv"),
            validation=tuple(history.validation),
            base_validation=history.base,
            facts=facts,
            plan=self.plan.facts(),
            mlflow_run_id=self.tracker.run_id,
        )


def checkpoint_steps(settings: TrainSettings) -> set[int]:
    """Steps after which an adapter is kept: evenly spread, the last included."""
    count = min(settings.checkpoints, settings.steps)
    return {round(settings.steps * (i + 1) / count) for i in range(count)}


def state_key(dataset: DatasetRecord, settings: TrainSettings, diffusion: Diffusion, seed: int) -> str:
    """What a saved state belongs to; a state of another key is not taken up."""
    parts = [STAGE_VERSION, settings.digest(), dataset.digest, diffusion.fingerprint, seed]
    return json.dumps([*parts, [caption.text for caption in dataset.captions]])


def _continued(settings: TrainSettings) -> dict[str, torch.Tensor]:
    from charengine.adapter import load_adapter

    return load_adapter(read_adapter(Path(settings.continue_from)))[0]


def _curve(history: History) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "loss", "smoothed", "learning_rate"])
    rows = zip(history.losses, history.smoothed, history.rates, strict=True)
    writer.writerows([step, *row] for step, row in enumerate(rows, start=1))
    return text.getvalue().encode()


class _determinism:
    """Deterministic GPU kernels for the duration, if the settings ask for them."""

    def __init__(self, settings: TrainSettings) -> None:
        self.wanted = settings.deterministic

    def __enter__(self) -> None:
        import os

        self.before = torch.are_deterministic_algorithms_enabled()
        if self.wanted:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
            torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)
