"""A disk that fills while an adapter is trained ends the training soon, and only when its state does not fit."""

from __future__ import annotations

import errno
import os

import pytest
from tiny_sdxl import FakeDiffusion
from trainings import adapters, train

from charengine.errors import BadInput
from charengine.stages.train import loop, state
from charengine.stages.train.state import FILE

FULL = "the disk of /x is full: free some space"


@pytest.fixture
def full(monkeypatch):
    """Looked at after every step, the disk is full."""
    monkeypatch.setattr(state, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(state, "full_disk", lambda place: FULL)


def test_a_disk_that_fills_ends_the_training_at_the_next_look_and_it_continues_once_there_is_room(
    store, tmp_path, monkeypatch, full
):
    seen, kept = [], train(store, tmp_path / "whole", save_state_every=1000)
    really, asked = store.write_state, []

    def third_fails(folder, name, data):
        asked.append(name)
        if len(asked) == 3:
            raise BadInput(f"cannot write {folder / name}: {os.strerror(errno.ENOSPC)}")
        really(folder, name, data)

    monkeypatch.setattr(store, "write_state", third_fails)
    with pytest.raises(BadInput, match="No space left"):
        train(store, tmp_path / "state", on_step=lambda progress: seen.append(progress.step), save_state_every=1000)
    assert seen == [1, 2, 3] and (tmp_path / "state" / FILE).exists()
    again = train(store, tmp_path / "state", on_step=lambda progress: seen.append(progress.step), save_state_every=1000)
    assert seen[3] == 3 and adapters(again) == adapters(kept)  # from the state of step 2


def test_it_is_looked_at_now_and_then_and_no_state_is_made_while_there_is_room(store, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(state, "full_disk", lambda place: looked.append(place) or "")
    monkeypatch.setattr(state, "LOOK_EVERY", 0.0)
    written, really = [], store.write_state
    monkeypatch.setattr(store, "write_state", lambda *what: (written.append(what), really(*what)))
    train(store, tmp_path / "state", steps=3, checkpoints=1, save_state_every=1000)
    assert looked == [tmp_path / "state"] * 3 and len(written) == 1  # that of the checkpoint
    looked.clear()
    monkeypatch.setattr(state, "LOOK_EVERY", 3600.0)
    train(store, tmp_path / "other", steps=3, checkpoints=1)
    assert looked == []


def test_lessons_that_could_not_be_kept_are_not_drawn_to_their_end(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "full_disk", lambda place: FULL)
    passes = []

    class Drawing(FakeDiffusion):
        def trace(self, *_, on_pass, steps, **__):
            for done in range(steps):
                passes.append(done)
                on_pass(done, steps)

    with pytest.raises(BadInput, match="free some space"):
        train(store, tmp_path, diffusion=Drawing(), distill=1, distill_size=64, description="a woman in a blue coat")
    assert passes == [0]
