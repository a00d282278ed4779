"""Checkpoints that are written while a GPU trains on; here a CPU does as a GPU would."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from trainings import Recorder, adapters, stop_after, train

from charengine.errors import BadInput
from charengine.stages.train import loop
from charengine.stages.train.checkpoints import CheckpointKeeper
from charengine.stages.train.loop import TrainingStopped
from charengine.stages.train.state import FILE
from charengine.store import Store


@pytest.fixture
def aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CheckpointKeeper", lambda *given, aside: CheckpointKeeper(*given, aside=True))


class Held:
    """A store whose adapters are written only once they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.written, put = threading.Event(), [], Store.put

        def slow(store: Store, data: bytes, name: str, *more: str) -> object:
            if name.endswith(".safetensors") and "step" in name:
                assert self.go.wait(60)
                self.written.append(name)
            return put(store, data, name, *more)

        monkeypatch.setattr(Store, "put", slow)


def kept_in(folder: Path) -> tuple[int, list[int]]:
    """The step of a state, and the checkpoints that it tells of."""
    with safe_open(folder / FILE, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return facts["step"], [record["step"] for record in facts["checkpoints"]]


@pytest.mark.usefixtures("aside")
def test_checkpoints_written_beside_the_steps_are_those_written_between_them(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recorder()
    beside = train(store, tmp_path / "beside", tracker=tracker)
    monkeypatch.undo()
    between_tracker = Recorder()
    between = train(store, tmp_path / "between", tracker=between_tracker)
    assert beside.checkpoints == between.checkpoints and len(beside.checkpoints) == 3
    assert tracker.checkpoints == between_tracker.checkpoints == [4, 8, 12]
    for metric in ("checkpoint/loss", "checkpoint/validation_loss"):
        assert [row for row in tracker.rows if metric in row[0]] == [
            row for row in between_tracker.rows if metric in row[0]
        ]


@pytest.mark.usefixtures("aside")
def test_steps_go_on_while_a_checkpoint_is_written_and_no_state_is_without_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, states = Held(monkeypatch), []

    def on_step(progress: loop.Progress) -> None:
        if (tmp_path / FILE).is_file():
            states.append((progress.step, *kept_in(tmp_path)))
        if progress.step == 7:
            held.go.set()

    record = train(store, tmp_path, on_step=on_step)
    assert [checkpoint.step for checkpoint in record.checkpoints] == [4, 8, 12]
    before = {saved for step, saved, _ in states if step <= 7}
    assert before == {2}  # that of 4 and 6 would have been without the checkpoint
    assert all(kept == [one for one in (4, 8, 12) if one <= saved] for _, saved, kept in states)


@pytest.mark.usefixtures("aside")
def test_a_checkpoint_that_was_written_beside_the_steps_is_followed_by_a_state(store: Store, tmp_path: Path) -> None:
    states = []

    def on_step(progress: loop.Progress) -> None:
        time.sleep(0.05)  # steps of a tiny model are quicker than any disk
        if (tmp_path / FILE).is_file():
            states.append(kept_in(tmp_path))

    train(store, tmp_path, on_step=on_step, save_state_every=100)
    assert [4] in [kept for _, kept in states]


@pytest.mark.usefixtures("aside")
@pytest.mark.parametrize("stop", [4, 5, 8])
def test_a_stop_waits_for_the_checkpoint_that_is_being_written(
    stop: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(store, tmp_path / "whole")
    held = Held(monkeypatch)
    threading.Timer(0.3, held.go.set).start()
    with pytest.raises(TrainingStopped):
        train(store, tmp_path / "parts", should_stop=stop_after(stop))
    assert kept_in(tmp_path / "parts") == (stop, [one for one in (4, 8, 12) if one <= stop])
    assert adapters(train(store, tmp_path / "parts")) == adapters(whole)


@pytest.mark.usefixtures("aside")
def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def full(own: Store, data: bytes, name: str, *more: str) -> object:
        if "step000004" in name:
            raise BadInput("the disk is full")
        return put(own, data, name, *more)

    monkeypatch.setattr(Store, "put", full)
    with pytest.raises(BadInput, match="the disk is full"):
        train(store, tmp_path)


def test_without_a_gpu_a_checkpoint_is_kept_before_the_next_step(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    held.go.set()
    seen: dict[int, int] = {}
    train(store, tmp_path, on_step=lambda progress: seen.update({progress.step: len(held.written)}))
    assert [seen[step] for step in (4, 5, 8, 9, 12)] == [0, 1, 1, 2, 2]


def test_one_checkpoint_is_taken_before_the_next_begins(store: Store) -> None:
    keeper = CheckpointKeeper(store, Recorder(), aside=True)
    begin = partial(keeper.begin, {"a": torch.zeros(1)}, {}, "a-step000001.safetensors")
    begin(lambda ref: loop.CheckpointRecord(step=1, adapter=ref))
    with pytest.raises(AssertionError, match="was not taken"):
        begin(lambda ref: loop.CheckpointRecord(step=2, adapter=ref))
    assert [record.step for record in keeper.take()] == [1] and not keeper.is_busy and keeper.take() == []
    keeper.close()
