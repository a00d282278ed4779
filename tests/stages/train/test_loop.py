"""The stage as a whole: it learns, it resumes exactly, it logs once, its files load."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_sdxl import FakeDiffusion, make_dataset
from trainings import RECIPE, Recorder, adapters, stop_after, train

from charengine.adapter.network import apply_adapter, load_adapter
from charengine.config import TrainSettings
from charengine.errors import BadInput, StageFailed
from charengine.records import AdapterRecord
from charengine.stages.train.checkpoints import checkpoint_steps
from charengine.stages.train.loop import TrainingStopped, train_adapter
from charengine.stages.train.state import FILE, StateWriter
from charengine.stages.train.validation import TrainingDiverged
from charengine.store import Store


@dataclass(frozen=True)
class Plain:
    """An uninterrupted training with the recipe as it is, which tests compare with and read, and never write to."""

    store: Store
    state: bytes
    record: AdapterRecord


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.set_num_threads(1)  # the fixture that does this for each test runs after this one
    folder = tmp_path_factory.mktemp("plain")
    record = train(Store(folder / "store"), folder / "state")
    return Plain(Store(folder / "store"), (folder / "state" / FILE).read_bytes(), record)


def test_training_learns_the_views_and_says_how_far_it_is(store, tmp_path):
    seen = []
    record = train(store, tmp_path / "state", on_step=seen.append, steps=40, checkpoints=2, validate_every=20)
    assert record.base_validation.loss > 1.3 * record.validation[-1].loss
    assert set(record.validation[-1].by_view) == {"front", "side", "back"}
    assert set(record.validation[-1].by_third) == {"low", "mid", "high"}
    assert [checkpoint.step for checkpoint in record.checkpoints] == [20, 40]
    assert [progress.step for progress in seen] == list(range(1, 41))
    assert seen[-1].seconds_left == 0
    assert seen[0].steps == 40
    between = {progress.step: progress.doing for progress in seen if progress.doing}
    assert between == {20: "validating and keeping a checkpoint", 40: "validating and keeping a checkpoint"}
    assert record.plan["precision"] == "fp32"
    rows = list(csv.reader(io.StringIO(store.get(record.curve).decode())))
    assert rows[0] == ["step", "loss", "smoothed", "learning_rate"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 41))
    assert record.facts["samples"] == 120


def test_the_last_checkpoint_is_a_file_that_holds_what_was_trained_and_how(plain):
    data = plain.store.get(plain.record.checkpoints[-1].adapter)
    tensors, metadata = load_adapter(data)
    assert metadata["ss_steps"] == "12"
    assert '"profile": "test"' in metadata["charengine.recipe"]
    assert len(tensors) == 3 * 79
    adapter = apply_adapter(FakeDiffusion().unet(), data, 1.0)
    assert len(adapter.modules) == 79
    first = load_adapter(plain.store.get(plain.record.checkpoints[0].adapter))[0]
    assert any(not torch.equal(first[key], tensors[key]) for key in tensors)


def test_the_same_inputs_make_the_same_bytes(plain, store, tmp_path):
    assert adapters(train(store, tmp_path / "state")) == adapters(plain.record)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "schedule": "cosine", "warmup": 3},
        {"algorithm": "tlora", "optimizer": "adamw", "distill": 1, "distill_size": 64, "description": "a blue woman"},
        {"batch": 1, "accumulate": 2, "dropout": 0.2, "random_backgrounds": 0.5, "masked_loss": 0.5},
        {"square": 128},
        {"distill": 1, "distill_size": 64, "description": "a woman in a blue coat", "batch": 2},
        {"precision": "fp16", "steps": 6, "checkpoints": 1, "validate_every": 0},  # which a processor computes slowly
        {"optimizer": "adamw8bit"},
        {"optimizer": "prodigy-schedulefree", "learning_rate": 1.0},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_stopped_and_resumed_twice_is_uninterrupted_bit_for_bit(plain, store, tmp_path, changes):
    whole = train(store, tmp_path / "whole", **changes) if changes else plain.record
    steps = changes.get("steps", RECIPE["steps"])
    for stop in (5, 4) if steps == 12 else (3, 2):
        with pytest.raises(TrainingStopped, match=rf"stopped at step \d+ of {steps}; the same command continues"):
            train(store, tmp_path / "parts", should_stop=stop_after(stop), **changes)
    parts = train(store, tmp_path / "parts", **changes)
    assert adapters(parts) == adapters(whole)
    assert parts.curve == whole.curve
    assert parts.validation == whole.validation
    assert parts.base_validation == whole.base_validation


# torch and diffusers are imported once; each line asks for a process that trains, and a fork before any thread is begun
SCRIPT = """
import os, sys; sys.path.insert(0, {tests!r}); sys.path.insert(0, {root!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
from trainings import train
from charengine.store import Store
import lycoris, diffusers.models.unets.unet_2d_condition
for state in sys.stdin:
    if child := os.fork():
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    print("process", os.getpid(), flush=True)
    record = train(Store({store!r}), Path(state.strip()), steps=30, checkpoints=2,
                   on_step=lambda p: print("step", p.step, flush=True))
    print("done", record.checkpoints[-1].adapter.sha256, record.curve.sha256, flush=True)
    os._exit(0)
"""


class Trainer:
    """Trainings in processes of their own."""

    def __init__(self, folder: Path) -> None:
        here = Path(__file__).parent
        script = SCRIPT.format(tests=str(here), root=str(here.parents[2]), store=str(folder / "store"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.folder, self.process = folder, subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes)

    def train(self, state: str, kill_at: int = 31) -> tuple[list[str], int]:
        """What a training said, and its exit status; it is killed once it has said that step."""
        self.process.stdin.write(f"{self.folder / state}\n")
        self.process.stdin.flush()
        pid, lines = int(self._line("process")), []
        while not (line := self.process.stdout.readline().strip()).startswith("ended"):
            lines.append(line)
            assert line, "the process that starts trainings has ended"
            if line.startswith("step") and int(line.split()[1]) == kill_at:
                os.kill(pid, signal.SIGKILL)
        return lines, int(line.split()[1])

    def _line(self, wanted: str) -> str:
        word, _, rest = self.process.stdout.readline().strip().partition(" ")
        assert word == wanted
        return rest

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.mark.timeout(300)
def test_killed_at_random_steps_it_continues_to_the_same_bytes(tmp_path):
    with closing(Trainer(tmp_path)) as trainer:
        (*_, whole), status = trainer.train("whole")
        assert status == 0
        dice = random.Random(5)
        for low, high in ((3, 12), (14, 28)):
            said, status = trainer.train("killed", kill_at=dice.randint(low, high))
            assert status == -signal.SIGKILL and not said[-1].startswith("done")
        lines, status = trainer.train("killed")
    assert status == 0
    assert int(lines[0].split()[1]) > 1  # it did not start again
    assert lines[-1] == whole


def test_losses_that_were_lost_with_the_machine_are_told_again_from_the_state(store, tmp_path):
    """A power cut takes what was spooled and not sent; the state that was saved has it."""
    tracker = Recorder()
    with pytest.raises(TrainingStopped):
        train(store, tmp_path, tracker=tracker, should_stop=stop_after(6))
    told = tracker.rows[:]
    tracker.rows = [row for row in told if row[1] <= 2]
    train(store, tmp_path, tracker=tracker)
    assert tracker.steps("train/loss") == tracker.steps("train/learning_rate") == list(range(1, 13))
    again = {step: metrics for metrics, step in tracker.rows if "train/loss" in metrics}
    assert all(again[step] == metrics for metrics, step in told if "train/loss" in metrics)


def test_no_step_is_logged_twice_however_often_it_is_resumed(store, tmp_path):
    tracker = Recorder()
    for stop in (5, 4):
        with pytest.raises(TrainingStopped):
            train(store, tmp_path, tracker=tracker, should_stop=stop_after(stop))
        (tmp_path / "copy").mkdir(exist_ok=True)
    train(store, tmp_path, tracker=tracker)
    assert tracker.steps("train/loss") == list(range(1, 13))
    assert tracker.steps("validation/loss") == [4, 6, 8, 12]
    assert tracker.steps("base/loss") == [0]
    assert tracker.checkpoints == [4, 8, 12]
    assert tracker.params["train.rank"] == 4
    assert tracker.params["plan.precision"] == "fp32"


def test_a_crash_after_the_last_state_repeats_steps_but_not_their_logs(store, tmp_path):
    tracker = Recorder()
    state = None
    with pytest.raises(TrainingStopped):
        train(store, tmp_path, tracker=tracker, should_stop=stop_after(3))
    state = (tmp_path / FILE).read_bytes()
    with pytest.raises(TrainingStopped):
        train(store, tmp_path, tracker=tracker, should_stop=stop_after(4))
    (tmp_path / FILE).write_bytes(state)  # as if the process had died before it saved again
    train(store, tmp_path, tracker=tracker)
    assert tracker.steps("train/loss") == list(range(1, 13))
    assert tracker.checkpoints == [4, 8, 12]


def test_a_slow_disk_costs_states_but_holds_up_no_step(store, tmp_path, monkeypatch):
    held, written, write = threading.Event(), [], StateWriter._write

    def slow(self, tensors, metadata):
        assert held.wait(60)
        written.append(json.loads(metadata["facts"])["step"])
        write(self, tensors, metadata)

    monkeypatch.setattr(StateWriter, "_write", slow)
    whole = train(store, tmp_path / "whole", on_step=lambda progress: progress.step == 12 and held.set())
    assert written[0] == 2  # that of step 2 was still being written when all steps were done
    assert set(written) <= {2, 12}
    held.clear()
    with pytest.raises(TrainingStopped):
        train(
            store,
            tmp_path / "parts",
            should_stop=stop_after(7),
            on_step=lambda progress: progress.step == 7 and held.set(),
        )
    assert written[-1] == 7  # a stop is saved whatever is being written
    parts = train(store, tmp_path / "parts")
    assert adapters(parts) == adapters(whole)


def test_it_stops_within_ten_seconds_and_leaves_the_unet_as_it_was(store, tmp_path):
    diffusion = FakeDiffusion()
    before = {key: value.clone() for key, value in diffusion.unet().state_dict().items()}
    started = time.perf_counter()
    with pytest.raises(TrainingStopped):
        train(store, tmp_path, diffusion=diffusion, should_stop=stop_after(1), steps=1000)
    assert time.perf_counter() - started < 10
    unet = diffusion.unet()
    assert all(torch.equal(before[key], value) for key, value in unet.state_dict().items())
    assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.parametrize("change", [{"learning_rate": 2e-2}, {"rank": 2}])
def test_a_state_of_other_settings_is_not_taken_up(plain, store, tmp_path, change, caplog):
    def begun(folder):
        """The losses of the first steps."""
        losses = {}
        with pytest.raises(TrainingStopped):
            train(
                store,
                folder,
                should_stop=stop_after(3),
                on_step=lambda progress: losses.update({progress.step: progress.loss}),
                **change,
            )
        return losses

    fresh = begun(tmp_path / "fresh")
    assert list(fresh) == [1, 2, 3]
    assert "belongs to other settings or data" not in caplog.text
    (tmp_path / FILE).write_bytes(plain.state)
    assert begun(tmp_path) == fresh
    assert "belongs to other settings or data" in caplog.text


def test_a_half_written_state_is_not_taken_up(plain, store, tmp_path, caplog):
    (tmp_path / FILE).write_bytes(plain.state[:5000])
    again = train(store, tmp_path)
    assert adapters(again) == adapters(plain.record)
    assert "cannot be read" in caplog.text


def test_early_stop_keeps_the_adapter_it_stopped_at(store, tmp_path):
    record = train(store, tmp_path, steps=60, validate_every=1, early_stop=2, learning_rate=0.3, checkpoints=1)
    losses = [point.loss for point in record.validation]
    assert record.steps < 60
    assert min(losses[-2:]) >= min(losses[:-2])
    assert record.checkpoints[-1].step == record.steps


def spoiled_after(store, folder, step):
    """A training whose model answers with NaN after so many steps, and what was logged of it."""
    diffusion, logged = FakeDiffusion(), Recorder()

    def spoil(progress):
        if progress.step >= step:
            with torch.no_grad():
                diffusion.unet().conv_out.bias.fill_(float("nan"))

    with pytest.raises(TrainingDiverged) as caught:
        if not step:
            diffusion.unet().conv_out.bias.data.fill_(float("nan"))
        train(store, folder, diffusion=diffusion, tracker=logged, on_step=spoil)
    assert caught.value.exit_status == StageFailed.exit_status
    return str(caught.value), logged


def test_a_loss_that_is_no_number_stops_with_the_setting_to_change(store, tmp_path):
    told, logged = spoiled_after(store, tmp_path, 1)
    assert told.startswith(
        "the loss became nan at step 2; lower train.learning_rate (it is 0.01) or set train.precision"
    )
    assert logged.steps("train/loss") == [1] and logged.checkpoints == []


def test_a_last_step_that_spoils_the_adapter_is_told_and_no_checkpoint_of_it_is_kept(store, tmp_path):
    told, logged = spoiled_after(store, tmp_path, 12)
    assert told == (
        "the validation loss of front, side, back became nan at step 12; "
        "lower train.learning_rate or set train.precision to bf16 or fp32"
    )
    assert logged.checkpoints == [4, 8] and logged.steps("validation/loss") == [4, 6, 8]


def test_a_base_model_that_answers_with_no_number_is_told_before_anything_is_learnt(store, tmp_path):
    told, logged = spoiled_after(store, tmp_path, 0)
    assert (
        "became nan at step 0, before anything was learnt; set train.precision to bf16 or fp32, or models.sdxl" in told
    )
    assert logged.rows == []


def test_training_goes_on_from_a_file(plain, store, tmp_path):
    record = plain.record
    path = plain.store.export(record.checkpoints[-1].adapter, tmp_path / "first.safetensors")
    again = train(store, tmp_path / "second", steps=2, checkpoints=1, learning_rate=1e-6, continue_from=str(path))
    assert again.base_validation.loss == pytest.approx(record.base_validation.loss, rel=1e-5)
    assert again.validation[-1].loss == pytest.approx(record.validation[-1].loss, rel=1e-2)
    with pytest.raises(BadInput, match="does not exist"):
        train(store, tmp_path / "third", continue_from="nowhere.safetensors")


def test_the_file_to_start_from_is_read_before_it_is_asked_whether_it_has_changed_and_no_step_is_made_then(
    plain, store, tmp_path
):
    path = plain.store.export(plain.record.checkpoints[-1].adapter, tmp_path / "first.safetensors")
    steps = []

    def refused():
        path.unlink()  # it is not read after this
        raise BadInput("first.safetensors was changed")

    how = {"steps": 2, "checkpoints": 1, "continue_from": str(path), "on_step": steps.append}
    with pytest.raises(BadInput, match="was changed"):
        train(store, tmp_path / "second", files_read=refused, **how)
    assert steps == [] and not (tmp_path / "second" / "state.safetensors").exists()
    plain.store.export(plain.record.checkpoints[-1].adapter, path)
    assert train(store, tmp_path / "third", files_read=path.unlink, **how).steps == 2


@pytest.mark.parametrize("wanted", [True, False])
def test_kernels_are_deterministic_while_it_trains_if_asked_and_as_before_afterwards(store, tmp_path, wanted):
    seen = []

    def look(progress):
        seen.append(torch.are_deterministic_algorithms_enabled())

    train(store, tmp_path, deterministic=wanted, on_step=look, steps=1, checkpoints=1)
    assert set(seen) == {wanted}
    assert not torch.are_deterministic_algorithms_enabled()


def test_checkpoints_carry_sample_pictures(plain):
    assert [len(checkpoint.samples) for checkpoint in plain.record.checkpoints] == [1, 1, 1]
    assert plain.store.get(plain.record.checkpoints[0].samples[0]).startswith(b"\x89PNG")


def test_validation_is_the_same_noise_for_every_seed_and_step(plain, store, tmp_path):
    settings = TrainSettings(**(RECIPE | {"steps": 4, "checkpoints": 1}))
    other = train_adapter(make_dataset(store), settings, FakeDiffusion(), store, seed=99, state_dir=tmp_path)
    assert plain.record.base_validation == other.base_validation
    assert plain.record.validation[0].step == other.validation[0].step == 4
    assert plain.record.validation[0] != other.validation[0]


@pytest.mark.parametrize(
    ("steps", "count", "wanted"), [(400, 5, {80, 160, 240, 320, 400}), (3, 10, {1, 2, 3}), (10, 1, {10})]
)
def test_checkpoints_are_evenly_spread_and_include_the_last_step(steps, count, wanted):
    assert checkpoint_steps(TrainSettings(steps=steps, checkpoints=count)) == wanted


def test_validation_and_samples_come_as_often_as_asked(store, tmp_path):
    tracker = Recorder()
    images = []
    tracker.log_image = lambda image, name, step=None: images.append(step)
    train(store, tmp_path, tracker=tracker, validate_every=0, sample_every=5)
    assert tracker.steps("validation/loss") == [4, 8, 12]
    assert images == [0, 4, 5, 8, 10, 12]
