"""A training goes on with the threads it began with, on whatever machine; where it cannot, its files say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_samples import sample_cell
from trainings import train

from charengine.adapter.network import load_adapter
from charengine.records import AdapterRecord
from charengine.stages.sweep.adapters import recommended
from charengine.stages.train import machines
from charengine.stages.train.loop import TrainingStopped
from charengine.store import Store


def machines_in(store: Store, record: AdapterRecord, checkpoint: int = -1) -> list[dict]:
    recipe = load_adapter(store.get(record.checkpoints[checkpoint].adapter))[1]["charengine.recipe"]
    return json.loads(recipe)["machines"]


SHORT = {"steps": 4, "checkpoints": 2, "validate_every": 0}


@pytest.fixture(autouse=True)
def counted_threads(monkeypatch) -> list[int]:
    """What torch is told, last; nothing really changes, since two threads on a busy machine wait for each other for minutes."""
    told = [1]
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[-1])
    return told


def stopped(store: Store, folder: Path, step: int, threads: int) -> None:
    seen = iter(range(1, 100))
    torch.set_num_threads(threads)
    with pytest.raises(TrainingStopped):
        train(store, folder, should_stop=lambda: next(seen) == step, **SHORT)
    torch.set_num_threads(1)


def test_the_recipe_says_the_kind_of_machine_and_its_threads(store, tmp_path) -> None:
    [told] = machines_in(store, train(store, tmp_path / "s", **SHORT))
    assert told == {"from_step": 0, "device": machines.processor(), "torch": torch.__version__, "threads": 1}


def test_a_continued_training_works_with_the_threads_it_began_with_and_ends_byte_equal(
    store, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(machines, "cores", lambda: 2)
    torch.set_num_threads(2)
    whole = train(store, tmp_path / "whole", **SHORT)
    stopped(store, tmp_path / "s", 3, threads=2)
    seen = []
    continued = train(store, tmp_path / "s", on_step=lambda _: seen.append(torch.get_num_threads()), **SHORT)
    assert (seen, torch.get_num_threads()) == ([2], 1)
    assert continued.facts["threads"] == 2
    assert [point.adapter for point in continued.checkpoints] == [point.adapter for point in whole.checkpoints]
    assert continued.warnings == ()


def test_killed_before_its_first_state_it_goes_on_with_the_threads_that_drew_its_lessons(
    store, tmp_path, monkeypatch
) -> None:
    """The lessons are half of what it learns from, and are not drawn again."""
    monkeypatch.setattr(machines, "cores", lambda: 2)
    teaching = SHORT | {"distill": 2, "distill_size": 64, "save_state_every": 50, "checkpoints": 1}
    torch.set_num_threads(2)
    whole = train(store, tmp_path / "whole", description="a woman with red hair", **teaching)

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "s", description="a woman with red hair", on_step=killed, **teaching)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"lessons.safetensors"}
    torch.set_num_threads(1)
    continued = train(store, tmp_path / "s", description="a woman with red hair", **teaching)
    assert [one["threads"] for one in machines_in(store, continued)] == [2]
    assert [point.adapter for point in continued.checkpoints] == [point.adapter for point in whole.checkpoints]

    monkeypatch.setattr(machines, "processor", lambda: "another")  # it was carried to another machine
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "t", description="a woman with red hair", on_step=killed, **teaching)
    monkeypatch.setattr(machines, "processor", lambda: "yet another")
    carried = train(store, tmp_path / "t", description="a woman with red hair", **teaching)
    told = [(one["from_step"], one["device"]) for one in machines_in(store, carried)]
    assert told == [(0, "another"), (0, "yet another")] and "yet another" in carried.warnings[0]


def test_with_fewer_cores_it_continues_and_the_files_and_the_record_say_so(
    store, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(machines, "cores", lambda: 1)
    stopped(store, tmp_path / "s", 3, threads=2)
    record = train(store, tmp_path / "s", **SHORT)
    assert "began with 2 threads" in caplog.text
    assert [(one["from_step"], one["threads"]) for one in machines_in(store, record)] == [(0, 2), (3, 1)]
    assert [one["threads"] for one in machines_in(store, record, checkpoint=0)] == [2]  # made before it moved
    assert "from step 3" in record.warnings[0] and "1 threads" in record.warnings[0]
    data, _ = recommended(store.get(record.checkpoints[-1].adapter), sample_cell(4, 0.5), {"profile": "test"})
    recipe = json.loads(load_adapter(data)[1]["charengine.recipe"])
    assert [one["threads"] for one in recipe["machines"]] == [2, 1]


def test_another_processor_or_torch_is_another_kind(monkeypatch) -> None:
    cpu = torch.device("cpu")
    first = machines.with_this([], cpu, 0)
    assert machines.with_this(first, cpu, 4) == first
    monkeypatch.setattr(machines, "processor", lambda: "another")
    assert [one["from_step"] for one in machines.with_this(first, cpu, 4)] == [0, 4]


def test_a_state_of_before_there_were_machines_is_taken_up(store, tmp_path) -> None:
    assert machines.moved([]) == ()
    with machines.threads_of([], torch.device("cpu")):
        assert torch.get_num_threads() == 1
