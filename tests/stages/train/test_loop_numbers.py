"""What training writes down: every number under its own name, in the record, the curve, the files and the tracker."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_sdxl import FakeDiffusion, make_dataset
from trainings import Recorder

from charengine.adapter.files import load_adapter
from charengine.config import TrainSettings
from charengine.models.prediction import Prediction
from charengine.records import AdapterRecord
from charengine.stages.train.clock import Clock
from charengine.stages.train.data import encode_dataset
from charengine.stages.train.loop import state_key, train_adapter
from charengine.stages.train.validation import Validation
from charengine.store import Store

SETTINGS = TrainSettings(
    rank=2,
    alpha=2,
    conv_rank=0,
    steps=6,
    checkpoints=2,
    validate_every=2,
    learning_rate=0.01,
    schedule="linear",
    warmup=2,
)


class Made:
    """One training of six steps, and everything it left."""

    def __init__(self, store: Store, tracker: Recorder, record: AdapterRecord) -> None:
        self.store, self.tracker, self.record = store, tracker, record

    def curve(self) -> list[dict[str, float]]:
        rows = csv.DictReader(io.StringIO(self.store.get(self.record.curve).decode()))
        return [{name: float(value) for name, value in row.items()} for row in rows]

    def logged(self, metric: str) -> dict[int, float]:
        return {step: metrics[metric] for metrics, step in self.tracker.rows if metric in metrics}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("training")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as every test of training has it
    store, tracker = Store(folder / "store"), Recorder()
    record = train_adapter(
        make_dataset(store),
        SETTINGS,
        FakeDiffusion(),
        store,
        seed=3,
        state_dir=folder / "state",
        tracker=tracker,
        recipe={"profile": "test"},
    )
    yield Made(store, tracker, record)
    torch.set_num_threads(threads)


def test_the_curve_smooths_its_own_losses_and_tells_each_steps_own_rate(made: Made) -> None:
    rows = made.curve()
    losses = [row["loss"] for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["smoothed"] for row in rows] == pytest.approx(
        [sum(losses[:n]) / n for n in range(1, 7)]
    )  # a mean at first
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])
    assert len(set(losses)) == 6


def test_the_tracker_gets_the_curves_numbers(made: Made) -> None:
    for metric, column in (
        ("train/loss", "loss"),
        ("train/smoothed_loss", "smoothed"),
        ("train/learning_rate", "learning_rate"),
    ):
        assert made.logged(metric) == {int(row["step"]): row[column] for row in made.curve()}


def test_a_checkpoint_has_the_smoothed_loss_and_the_validation_of_its_own_step(made: Made) -> None:
    smoothed = {row["step"]: row["smoothed"] for row in made.curve()}
    validation = {point.step: point.loss for point in made.record.validation}
    assert list(validation) == [2, 3, 4, 6] and len(set(validation.values())) == 4
    for point in made.record.checkpoints:
        assert point.loss == smoothed[point.step]
        assert point.validation_loss == validation[point.step]
    assert [point.step for point in made.record.checkpoints] == [3, 6]
    assert [point.logged_model_id for point in made.record.checkpoints] == ["model-3", "model-6"]
    assert made.logged("checkpoint/loss") == {step: smoothed[step] for step in (3, 6)}
    assert made.logged("checkpoint/validation_loss") == {step: validation[step] for step in (3, 6)}


def test_validation_is_logged_view_by_view_and_third_by_third(made: Made) -> None:
    for point in made.record.validation:
        for view, loss in point.by_view.items():
            assert made.logged(f"validation/view/{view}")[point.step] == loss
        for third, loss in point.by_third.items():
            assert made.logged(f"validation/timesteps/{third}")[point.step] == loss
    base = made.record.base_validation
    assert base is not None and base.step == 0
    assert made.logged("base/loss") == {0: base.loss}
    assert made.logged("base/view/side") == {0: base.by_view["side"]}


def test_facts_and_record_count_what_was_done(made: Made) -> None:
    facts = made.record.facts
    assert facts["step_ms"] == pytest.approx(1000 * facts["seconds"] / 6)
    assert 0 < facts["stepping_ms"] < facts["step_ms"]  # checkpoints and validations are beside the steps
    assert facts["samples"] == 18  # three views a step
    assert (made.record.steps, made.record.trigger, made.record.class_noun) == (6, "zorgal", "woman")
    assert made.record.dataset_digest == "d" * 64


def test_each_file_says_its_own_step_and_what_it_was_made_with(made: Made) -> None:
    for point in made.record.checkpoints:
        tensors, metadata = load_adapter(made.store.get(point.adapter))
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}  # as precise as it was trained
        assert metadata["ss_steps"] == str(point.step)
        assert (metadata["ss_seed"], metadata["ss_max_train_steps"]) == ("3", "6")
        assert metadata["ss_resolution"] == "(64, 128)"
        assert metadata["ss_sd_model_hash"] == "0123abcd" and metadata["ss_num_reg_images"] == "0"
        assert "ss_sd_model_name" not in metadata  # the stage's key does not know how the base model's file is called
        assert (metadata["ss_v_parameterization"], metadata["ss_zero_terminal_snr"]) == ("False", "False")
        recipe = json.loads(metadata["charengine.recipe"])
        assert [one["from_step"] for one in recipe.pop("machines")] == [0]
        assert recipe == {"profile": "test", "dataset_digest": "d" * 64}
        assert point.adapter.name == f"zorgal-step{point.step:06d}.safetensors"
        with Image.open(io.BytesIO(made.store.get(point.samples[0]))) as sample:
            assert sample.size == (64, 128) and sample.getpixel((0, 0)) == (3, 0, 0)  # drawn with the seed


def test_a_file_says_what_its_base_predicts_and_how_many_class_images_it_saw(tmp_path: Any) -> None:
    class Velocity(FakeDiffusion):
        prediction = Prediction("v_prediction", True)

    classes = tmp_path / "classes"
    classes.mkdir()
    for name in "ab":
        Image.new("RGB", (64, 128), "red").save(classes / f"{name}.png")
        (classes / f"{name}.txt").write_text("a woman")
    store, settings = (
        Store(tmp_path / "store"),
        SETTINGS.model_copy(update={"steps": 1, "regularisation": str(classes)}),
    )
    record = train_adapter(make_dataset(store), settings, Velocity(), store, seed=3, state_dir=tmp_path / "state")
    metadata = load_adapter(store.get(record.checkpoints[-1].adapter))[1]
    assert (metadata["ss_v_parameterization"], metadata["ss_zero_terminal_snr"]) == ("True", "True")
    assert (metadata["modelspec.prediction_type"], metadata["ss_num_reg_images"]) == ("v", "2")


@pytest.mark.parametrize("change", ["settings", "dataset", "captions", "model", "seed"])
def test_a_state_belongs_to_settings_dataset_captions_model_and_seed(change: str, tmp_path: Any) -> None:
    dataset, diffusion, seed, settings = make_dataset(Store(tmp_path)), SimpleNamespace(fingerprint="a"), 3, SETTINGS
    given: Any = (dataset, settings, diffusion, seed)
    caption = dataset.captions[0].model_copy(update={"text": "zorgal, another"})
    changed: Any = {
        "settings": (dataset, settings.model_copy(update={"rank": 3}), diffusion, seed),
        "dataset": (dataset.model_copy(update={"digest": "e" * 64}), settings, diffusion, seed),
        "captions": (
            dataset.model_copy(update={"captions": (caption, *dataset.captions[1:])}),
            settings,
            diffusion,
            seed,
        ),
        "model": (dataset, settings, SimpleNamespace(fingerprint="b"), seed),
        "seed": (dataset, settings, diffusion, 4),
    }[change]
    assert state_key(*changed) != state_key(*given)


def test_validation_means_each_views_errors_and_each_thirds_from_little_noise_to_much(tmp_path: Any) -> None:
    store, diffusion = Store(tmp_path), FakeDiffusion()
    data = encode_dataset(make_dataset(store), SETTINGS, diffusion, store)
    validation = Validation(diffusion.unet(), data, diffusion.alphas_cumprod(), chunk=6)
    assert [batch.view for batch in validation.batches] == ["front", "side", "back"]
    assert validation.batches[0].timesteps.tolist() == [83, 250, 416, 583, 750, 916]
    for index, batch in enumerate(validation.batches):
        assert torch.equal(batch.embeds[0], data.buckets[0].embeds[index])
        assert torch.equal(batch.pooled[0], data.buckets[0].pooled[index])
    scale = {"front": 1.0, "side": 10.0, "back": 100.0}
    errors = torch.tensor([1.0, 3.0, 4.0, 6.0, 7.0, 9.0])
    validation._errors = lambda batch: [scale[batch.view] * errors]  # type: ignore[method-assign]
    point = validation.measure(40)
    assert point.step == 40 and point.loss == pytest.approx(185.0)
    assert point.by_view == pytest.approx({"front": 5.0, "side": 50.0, "back": 500.0})
    assert point.by_third == pytest.approx({"low": 74.0, "mid": 185.0, "high": 296.0})


def test_the_seconds_of_a_training_are_those_of_all_its_sessions() -> None:
    clock = Clock(step=10, before=100.0)
    assert 100.0 <= clock.read() < 160.0
    assert 0.0 <= clock.per_step(20) < 6.0


def test_steps_are_timed_without_what_is_done_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 1.0, 4.0, 50.0, 53.0))  # made; a step, read; another, read
    monkeypatch.setattr("charengine.stages.train.clock.time.perf_counter", lambda: next(now))
    clock = Clock(step=10, before=0.0)
    clock.step_begins()
    clock.read()
    clock.step_begins()
    clock.read()
    assert clock.alone(12) == 3.0
