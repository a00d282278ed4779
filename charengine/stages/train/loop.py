"""The training stage: cached data → adapter checkpoints, resumable at any step."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charengine.adapter.metadata import adapter_metadata
from charengine.config import TrainSettings
from charengine.errors import BadInput, StageFailed
from charengine.language.phrases import trait_phrases
from charengine.machine.attention import unplanned_attention
from charengine.machine.places import full_disk
from charengine.models import Diffusion, TextConditioning
from charengine.models.base_names import NAME
from charengine.pictures import png
from charengine.records import AdapterRecord, CheckpointRecord, DatasetRecord, LossPoint, Ref
from charengine.stage import Progress
from charengine.stages.train.checkpoints import CheckpointKeeper, checkpoint_steps
from charengine.stages.train.clock import Clock
from charengine.stages.train.curve import as_csv, last_of_views, losses_of_step, smoothed
from charengine.stages.train.data import TrainingData, encode_dataset
from charengine.stages.train.lessons import Lessons, draw_lessons, drawn_on, kept_lessons
from charengine.stages.train.machines import moved, threads_of, with_this
from charengine.stages.train.plan import RESERVE_GIB, Plan, memory_cap
from charengine.stages.train.sampler import groups_of_step
from charengine.stages.train.schedule import learning_rate
from charengine.stages.train.setup import Setup, describe
from charengine.stages.train.state import History, StateWriter, load_state, saved_machines
from charengine.stages.train.told import digest_of, early_warnings, idle_warnings, starts_from_values
from charengine.stages.train.validation import TrainingDiverged
from charengine.store import Store
from charengine.tracking.protocol import NullTracker, Tracker
from charengine.wording import file_stem

log = logging.getLogger(__name__)

STATE_VERSION = 3  # of a saved state: one of another version is not taken up
READ_EVERY = 10  # steps between reads of the losses on a GPU, where each read waits for the device
READ_SECONDS = 1.0  # but those who follow a training of slow steps wait no longer
BETWEEN_STEPS = {"validate": "validating", "sample": "drawing a sample", "checkpoint": "keeping a checkpoint"}
SAMPLE_STEPS, SAMPLE_GUIDANCE = 10, 4.0
SAMPLE_GIB = 4.0  # GPU memory a sample picture needs beside the training


class TrainingStopped(StageFailed):
    """Asked to stop; the state is saved and the same call continues from it."""


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
    description: str = "",
    plans: Path | None = None,
    files_read: Callable[[], None] = lambda: None,
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
        recipe: what the training was asked for, written into the files.
        should_stop: asked at every step.
        on_step: told at every read of the losses, and before the first step at every pass of the lessons.
        description: what the character looks like, for lessons; without any trait in it there are none.
        plans: file that remembers which memory plan fitted this machine; None: all are tried.
        files_read: called when `continue_from` and class images were read, before the first step.

    Raises:
        BadInput: the data or `continue_from` cannot be used.
        OutOfBudget: no plan fits `budget_gib`; carries the smallest budget that would.
        TrainingStopped: `should_stop` said so; the state is saved, if a step was made.
        TrainingDiverged: a loss became NaN, that of a step or of a validation.
    """
    told = early_warnings(dataset.trigger, settings, diffusion)
    device = torch.device(diffusion.device)
    traits = trait_phrases(description.replace(dataset.trigger, " "), dataset.class_noun) if settings.distill else ()
    key = state_key(dataset, settings, diffusion, seed, traits)
    before = saved_machines(state_dir, key) or drawn_on(state_dir, key)
    with (
        deterministic_kernels(settings.deterministic),
        unplanned_attention(settings.steps),
        threads_of(before, device),
    ):
        data = encode_dataset(dataset, settings, diffusion, store, with_squares=not traits)
        if traits:
            draw = _drawing((dataset, traits, settings, diffusion, seed), state_dir, should_stop, on_step)
            data = replace(data, lessons=kept_lessons(state_dir, key, device, store, draw))
            if settings.fp8_base:
                diffusion.unload("unet")  # it is loaded anew beside the GPU, to be made smaller there
        what = (dataset, settings, diffusion, store, data, seed, state_dir, tracker, recipe, key, plans)
        with memory_cap(settings.budget_gib, device), closing(_Training(*what)) as training:
            files_read()
            made = training.run(should_stop, on_step)
            return made.model_copy(update={"warnings": (*told, *made.warnings)})


def _drawing(
    what: tuple[DatasetRecord, Sequence[str], TrainSettings, Diffusion, int],
    state_dir: Path,
    should_stop: Callable[[], bool],
    on_step: Callable[[Progress], None] | None,
) -> Callable[[], Lessons]:
    """Draws lessons, which on a CPU takes longer than many a training: it stops when asked to, and says how far it is."""
    steps = what[2].steps

    def on_pass(done: int, of: int) -> None:
        if full := full_disk(state_dir):  # they could not be kept
            raise BadInput(f"{full}; lessons are drawn anew then")
        if should_stop():
            raise TrainingStopped(f"stopped before the first of {steps} steps; the same command begins anew")
        if on_step:
            doing = f"drawing what the base model knows of the description, {100 * done // of} % done"
            on_step(Progress(0, steps, math.nan, math.nan, 0.0, 0.0, math.nan, 0.0, doing))

    return lambda: draw_lessons(*what, on_pass)


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
        key: str,
        plans: Path | None,
    ) -> None:
        self.dataset, self.settings, self.store, self.seed = dataset, settings, store, seed
        self.data, self.tracker, self.recipe, self.diffusion = data, tracker, recipe, diffusion
        saved = load_state(state_dir, key)
        self.history, tensors = saved or (History(machines=drawn_on(state_dir, key)), {})
        plan = Plan(**self.history.plan) if saved else None
        self.setup = Setup(diffusion, settings, data, seed, plan, fresh=saved is None, memory=plans)
        log.info("memory plan: %s", describe(self.setup.plan))
        if saved:
            self.setup.restore(tensors)
            log.info("continuing from step %d of %d", self.history.step, settings.steps)
        self.history.plan = self.setup.plan.facts()
        self.history.machines = with_this(self.history.machines, self.setup.device, self.history.step)
        self.cuda = self.setup.device.type == "cuda"
        self.writer = StateWriter(state_dir, key, store)
        self.keeper = CheckpointKeeper(store, tracker, aside=self.cuda)
        self.last_logged = max(tracker.last_step(name) for name in ("train/loss", "train/lesson_loss"))

    def run(self, should_stop: Callable[[], bool], on_step: Callable[[Progress], None] | None) -> AdapterRecord:
        """Step to the end, keeping checkpoints, validations and states on the way."""
        settings, history = self.settings, self.history
        self._begin()
        clock = Clock(history.step, history.seconds)
        step = history.step
        while step < settings.steps and not self._early_stop():
            clock.step_begins()
            self.setup.step.run(step, groups_of_step(self.data, settings, self.seed, step))
            step += 1
            stopping = should_stop()
            pressed = stopping or self.writer.is_out_of_room()
            kept = self.keeper.is_ready
            due = self._due(step) | ({"save"} if pressed or kept else set())
            if due or not self.cuda or step - history.step >= READ_EVERY or clock.since_read() >= READ_SECONDS:
                self._read(step)  # waits for a GPU
                history.seconds = clock.read()
                if on_step:
                    on_step(self._progress(clock, due))
            if "validate" in due:
                self._validate(step)
            if "sample" in due and self._room_for_samples():
                self._samples(step)
            if kept or "checkpoint" in due:
                history.checkpoints += self.keeper.take()
            if "checkpoint" in due:
                self._checkpoint(step)
            if pressed or not self.keeper.aside:
                history.checkpoints += self.keeper.take()
            if pressed:
                self.writer.wait()  # this state must be written
            if due & {"save", "checkpoint"} and not self.keeper.is_busy:  # a state tells of all that was kept before it
                self.writer.save(history, self.setup.tensors())
            if pressed:
                self.writer.wait()
            if stopping and step < settings.steps:
                raise TrainingStopped(
                    f"stopped at step {step} of {settings.steps}; the same command continues from there"
                )
        history.checkpoints += self.keeper.take()
        if step < settings.steps and (not history.checkpoints or history.checkpoints[-1].step < step):
            log.info("early stop at step %d: no better validation for %d validations", step, settings.early_stop)
            self._checkpoint(step)
            history.checkpoints += self.keeper.take()
        self.writer.wait()
        return self._record(clock)

    def close(self) -> None:
        """Finish writing and leave the U-Net as it was found."""
        self.keeper.close()
        self.writer.close()
        self.setup.close()

    # -- parts of a run, in order of use

    def _begin(self) -> None:
        if self.last_logged < 0:
            self.tracker.log_params(self.settings.params("train"))
            self.tracker.log_params({f"plan.{key}": value for key, value in self.setup.plan.facts().items()})
        for step in range(max(self.last_logged, 0) + 1, self.history.step + 1):
            self._log_step(step)  # saved in the state, and lost with the machine before MLflow had it
        if self.history.base is None:
            self.history.start = digest_of(self._file(0)[0]) if starts_from_values(self.settings) else ""
            self.history.base = self.setup.base or self._measure(0)  # a fresh adapter is the base model
            self._log_validation(self.history.base, "base")
            if self._room_for_samples():
                self._samples(0)

    def _due(self, step: int) -> set[str]:
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
        if settings.sample_every and step % settings.sample_every == 0 and not checkpoint:
            due.add("sample")
        return due

    def _read(self, last: int) -> None:
        """Take the losses up to step `last` off the device and log them."""
        history = self.history
        for step, loss in enumerate(self.setup.step.read_losses(history.step, last), start=history.step):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss became {loss} at step {step + 1}; lower train.learning_rate "
                    f"(it is {self.settings.learning_rate}) or set train.precision to bf16 or fp32"
                )
            history.losses.append(loss)
            history.smoothed.append(smoothed(history.smoothed, loss, self.data))
            history.rates.append(learning_rate(self.settings, step))
            if step + 1 > self.last_logged:
                self._log_step(step + 1)
        history.step = last

    def _log_step(self, step: int) -> None:
        """The losses after a step."""
        losses = {f"train/{name}": loss for name, loss in losses_of_step(self.history, step - 1, self.data).items()}
        self.tracker.log_metrics(losses | {"train/learning_rate": self.history.rates[step - 1]}, step)

    def _progress(self, clock: Clock, due: set[str]) -> Progress:
        history, each = self.history, clock.per_step(self.history.step)
        left = each * (self.settings.steps - history.step)
        memory = torch.cuda.memory_reserved(self.setup.device) / 2**30 if self.cuda else 0.0
        losses = (last_of_views(history, self.data), history.smoothed[-1], history.rates[-1])
        doing = " and ".join(words for what, words in BETWEEN_STEPS.items() if what in due)
        return Progress(history.step, self.settings.steps, *losses, each * 1000, left, memory, doing)

    def _validate(self, step: int) -> None:
        point = self._measure(step)
        self.history.validation.append(point)
        self._log_validation(point, "validation")

    def _measure(self, step: int) -> LossPoint:
        with self.setup.evaluating():
            return self.setup.validation.measure(step)

    def _log_validation(self, point: LossPoint, name: str) -> None:
        if point.step <= self.tracker.last_step(f"{name}/loss"):
            return
        metrics = {f"{name}/loss": point.loss}
        metrics |= {f"{name}/view/{view}": loss for view, loss in point.by_view.items()}
        metrics |= {f"{name}/timesteps/{third}": loss for third, loss in point.by_third.items()}
        self.tracker.log_metrics(metrics, point.step)

    def _checkpoint(self, step: int) -> None:
        """Begin to keep the adapter as it is now."""
        history = self.history
        samples = self._samples(step) if self._room_for_samples() else ()
        validation = history.validation[-1].loss if history.validation else None
        loss = history.smoothed[-1]
        record = partial(CheckpointRecord, step=step, loss=loss, validation_loss=validation, samples=samples)
        name = f"{file_stem(self.dataset.trigger)}-step{step:06d}.safetensors"
        self.keeper.begin(*self._file(step), name, lambda ref: record(adapter=ref))

    def _room_for_samples(self) -> bool:
        """A VAE and a guided U-Net pass need room beside the training; the sweep draws the pictures that count."""
        plan = self.setup.plan
        return not self.cuda or plan.budget_gib - plan.peak_gib > SAMPLE_GIB

    def _samples(self, step: int) -> tuple[Ref, ...]:
        """One small picture of the trigger alone, the same noise every time; the VAE is loaded for it and unloaded."""
        bucket = self.data.views[0]
        with self.setup.evaluating():
            images = self.diffusion.sample(
                self.data.sample_prompt,
                self.data.sample_negative or TextConditioning(self.data.empty_embeds, self.data.empty_pooled),
                seeds=[self.seed],
                size=(bucket.width, bucket.height),
                steps=SAMPLE_STEPS,
                guidance=SAMPLE_GUIDANCE,
            )
        self.diffusion.unload("vae")
        refs = []
        for image in images:
            refs.append(self.store.put(png(image), f"sample-step{step:06d}.png"))
            if step > self.last_logged:
                self.tracker.log_image(image, "samples", step)
        return tuple(refs)

    def _file(self, step: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The adapter as it is now, in host memory, and its file's metadata."""
        bucket = self.data.views[0]
        metadata = adapter_metadata(
            self.settings,
            name=self.dataset.trigger,
            trigger=self.dataset.trigger,
            captions=self.data.captions,
            resolution=(bucket.width, bucket.height),
            step=step,
            seed=self.seed,
            velocity=self.diffusion.prediction.velocity,
            zero_terminal_snr=self.diffusion.prediction.zero_terminal_snr,
            class_images=sum(len(one.names) for one in self.data.buckets if one.regularisation),
            recipe={**(self.recipe or {}), "dataset_digest": self.dataset.digest, "machines": self.history.machines},
            base={key: value for key, value in self.diffusion.base_names.items() if key != NAME},  # the run says that
        )
        kind = torch.float32 if self.setup.plan.precision == "fp32" else torch.float16
        with self.setup.evaluating():
            rounded = None if self.settings.algorithm == "tlora" else kind  # T-LoRA's are multiplied out first
            tensors = self.setup.adapter.state_dict(kind, self.setup.parameters.named("cpu", rounded))
        return tensors, metadata

    def _early_stop(self) -> bool:
        """No validation better than the best one for `early_stop` validations."""
        patience, losses = self.settings.early_stop, [point.loss for point in self.history.validation]
        return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])

    def _record(self, clock: Clock) -> AdapterRecord:
        history, setup = self.history, self.setup
        turns = [groups_of_step(self.data, self.settings, self.seed, step) for step in (0, 1)]
        per_step = sum(len(group.samples) for groups in turns for group in groups) / len(turns)
        facts = {
            "parameters": setup.parameters.count(),
            "modules": len(setup.adapter.modules),
            "seconds": history.seconds,
            "step_ms": 1000 * history.seconds / max(1, history.step),
            **({"stepping_ms": 1000 * alone} if (alone := clock.alone(history.step)) else {}),
            "samples": per_step * history.step,
            "peak_gib": torch.cuda.max_memory_reserved(setup.device) / 2**30 + RESERVE_GIB if self.cuda else 0.0,
            "threads": torch.get_num_threads(),
        }
        return AdapterRecord(
            checkpoints=tuple(history.checkpoints),
            steps=history.step,
            trigger=self.dataset.trigger,
            class_noun=self.dataset.class_noun,
            dataset_digest=self.dataset.digest,
            curve=self.store.put(as_csv(history, self.data), "loss.csv", "text/csv"),
            validation=tuple(history.validation),
            base_validation=history.base,
            facts={name: float(value) for name, value in facts.items()},
            plan=setup.plan.facts(),
            mlflow_run_id=self.tracker.run_id,
            warnings=(*moved(history.machines), *idle_warnings(history, self.store, self.settings)),
        )


def state_key(
    dataset: DatasetRecord, settings: TrainSettings, diffusion: Diffusion, seed: int, traits: Sequence[str] = ()
) -> str:
    """What a saved state belongs to; a state of another key is not taken up."""
    parts = [STATE_VERSION, settings.digest(), dataset.digest, diffusion.fingerprint, seed]
    drawn_by = diffusion.sampling_fingerprint if traits else ""
    return json.dumps([*parts, [caption.text for caption in dataset.captions], [drawn_by, *traits]])


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Only deterministic GPU kernels for the duration, where wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
