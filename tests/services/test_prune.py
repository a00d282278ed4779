"""Pruning removes what nothing refers to, and nothing else, also while runs go on."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from charengine.errors import BadInput
from charengine.machine import known_runs
from charengine.machine.home import Home
from charengine.machine.known_runs import note_run
from charengine.machine.locks import single_flight
from charengine.records import Ref, ReportRecord
from charengine.services import prune
from charengine.services.prune import leftovers, remove
from charengine.services.sizes import run_sizes, size_of
from charengine.store import Store

KEY = "train-" + "0123456789" * 4
OTHER = "sheet-" + "9876543210" * 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)  # runs are looked for in the work folder too
    return Home(tmp_path / "home").create()


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.store)


def blob(home: Home, ref: Ref) -> Path:
    return home.store / "sha256" / ref.sha256[:2] / ref.sha256


def aged(place: Path, days: float) -> None:
    """As if nobody had touched it since."""
    when = time.time() - days * prune.DAY
    for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
        os.utime(path, (when, when))


def kinds(home: Home, older_than: float | None = None) -> list[str]:
    return sorted(item.kind for item in leftovers(home, older_than))


def run_folder(home: Home, ref: Ref, keys: tuple[str, ...] = (), name: str = "Grisha") -> Path:
    folder = home.root.parent / "elsewhere" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"sheet": {"sha256": ref.sha256}}))
    note_run(home, folder, keys)
    return folder


def test_an_old_object_that_nothing_refers_to_goes_and_only_when_asked(home: Home, store: Store) -> None:
    orphan, wanted = store.put(b"orphan", "a.png"), store.put(b"wanted", "b.png")
    store.put_result(KEY, ReportRecord(html=wanted))
    aged(home.store, 2)
    young = store.put(b"young", "c.png")  # what refers to it may be written next
    [item] = leftovers(home)
    assert (item.kind, item.path, item.bytes) == (prune.OBJECTS, blob(home, orphan), 6)
    assert blob(home, orphan).exists()
    assert [gone.path for gone in remove(home)] == [blob(home, orphan)]
    assert not store.has(orphan) and store.has(wanted) and store.has(young)
    assert list(home.store.rglob("*.pruned")) == []


def test_what_a_training_s_state_a_finished_cell_or_a_run_s_folder_refers_to_stays(home: Home, store: Store) -> None:
    import torch
    from safetensors.torch import save

    held = [store.put(name.encode(), name) for name in ("checkpoint", "cell", "sheet")]
    (home.state / KEY).mkdir()
    facts = json.dumps({"checkpoints": [{"adapter": {"sha256": held[0].sha256}}]})
    (home.state / KEY / "state.safetensors").write_bytes(save({"curve": torch.zeros(1)}, {"facts": facts}))
    store.put_result(f"{KEY}/100-0.5-7", ReportRecord(html=held[1]))
    run_folder(home, held[2])
    aged(home.store, 400)
    aged(home.state, 400)
    assert kinds(home) == []
    remove(home)
    assert all(store.has(ref) for ref in held)


def test_old_results_go_by_age_with_their_objects_unless_a_folder_names_them(home: Home, store: Store) -> None:
    mine, theirs = store.put(b"mine", "a"), store.put(b"theirs", "b")
    store.put_result(KEY, ReportRecord(html=mine))
    store.put_result(OTHER, ReportRecord(html=theirs))
    folder = run_folder(home, mine, (KEY,))
    (home.state / f"{OTHER}-smaller").mkdir()
    aged(home.store, 40)
    aged(home.state, 40)
    assert prune.RESULTS not in kinds(home)
    assert prune.RESULTS not in kinds(home, 50)
    removed = {item.kind for item in remove(home, 30)}
    assert {prune.RESULTS, prune.OBJECTS} <= removed
    assert store.has(mine) and not store.has(theirs)
    assert store.result(KEY, ReportRecord) and store.result(OTHER, ReportRecord) is None
    assert not (home.state / f"{OTHER}-smaller").exists()
    (folder / "run.json").unlink()
    folder.rmdir()  # the user deleted the run: now its results are nobody's
    aged(home.store, 40)
    remove(home, 30)
    assert store.result(KEY, ReportRecord) is None and not store.has(mine)
    assert list(home.known_runs.iterdir()) == []


def test_a_run_whose_disk_is_away_keeps_its_results(home: Home, store: Store, tmp_path: Path) -> None:
    ref = store.put(b"mine", "a")
    store.put_result(KEY, ReportRecord(html=ref))
    run_folder(home, ref, (KEY,))
    (tmp_path / "elsewhere").rename(tmp_path / "unplugged")
    aged(home.store, 400)
    remove(home, 30)
    assert store.result(KEY, ReportRecord) is not None and store.has(ref)
    assert len(list(home.known_runs.iterdir())) == 1


def test_while_something_is_being_made_old_results_and_states_stay(home: Home, store: Store) -> None:
    store.put_result(OTHER, ReportRecord(html=store.put(b"x", "x")))
    (home.state / KEY).mkdir()
    aged(home.store, 40)
    aged(home.state, 40)
    with single_flight(home.locks / f"{KEY}.lock", "x"):
        assert kinds(home, 30) == []
        assert remove(home, 30) == []
    assert kinds(home, 30) == sorted([prune.RESULTS, prune.STATES, prune.OBJECTS])


def test_the_progress_of_a_finished_stage_goes_and_that_of_one_being_made_stays(home: Home, store: Store) -> None:
    store.put_result(KEY, ReportRecord(html=store.put(b"x", "x")))
    (home.state / KEY).mkdir()
    store.put_result(f"{KEY}/cell", ReportRecord(html=store.put(b"y", "y")))
    with single_flight(home.locks / f"{KEY}.lock", "x"):  # made anew with --refresh: this is its progress
        remove(home)
        assert (home.state / KEY).exists() and store.result(f"{KEY}/cell", ReportRecord)
    remove(home)
    assert not (home.state / KEY).exists() and store.result(f"{KEY}/cell", ReportRecord) is None


def test_halves_of_killed_writes_and_free_locks_go_after_a_day(home: Home, store: Store) -> None:
    half = home.store / "sha256" / "ab" / ".abcd.0123.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half")
    with single_flight(home.locks / f"{KEY}.lock", "x"):
        pass
    (home.locks / "gpu-0.lock").touch()
    assert kinds(home) == []
    aged(home.root, 2)
    assert kinds(home) == sorted([prune.PARTIALS, prune.LOCKS])
    remove(home)
    assert not half.exists() and [path.name for path in home.locks.iterdir()] == ["gpu-0.lock"]


def test_whoever_waits_for_a_lock_that_is_removed_meanwhile_still_holds_one(home: Home) -> None:
    path, order = home.locks / f"{KEY}.lock", list[str]()

    def waits() -> None:
        with single_flight(path, "x"):
            order.append("waiter in")
            inside.set()
            leave.wait(10)
            order.append("waiter out")

    inside, leave = threading.Event(), threading.Event()
    with single_flight(path, "x"):
        waiter = threading.Thread(target=waits)
        waiter.start()
        time.sleep(0.1)  # it waits for the file that is removed now
        path.unlink()
    assert inside.wait(10)
    third = threading.Thread(target=lambda: single_flight(path, "x").__enter__() is None or order.append("third in"))
    third.start()
    time.sleep(0.1)
    leave.set()
    waiter.join()
    third.join(10)
    assert order == ["waiter in", "waiter out", "third in"]


def test_adapters_that_the_store_has_too_become_links_to_it(home: Home, store: Store) -> None:
    data = b"adapter" * 20_000
    ref = store.put(data, "a.safetensors")
    store.put_result(KEY, ReportRecord(html=ref))
    copy = home.mlflow / "artifacts" / "1" / "a.safetensors"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(data)
    before = size_of(home.root)
    assert kinds(home) == [prune.COPIES]
    remove(home)
    assert copy.read_bytes() == data and copy.samefile(blob(home, ref))
    assert before - size_of(home.root) == len(data)
    assert kinds(home) == []


@pytest.mark.parametrize("moment", ["before it is moved aside", "while it is aside"])
def test_an_object_wanted_again_at_the_worst_moment_stays(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    ref = store.put(b"content", "a.png")
    aged(home.store, 2)
    rename = os.rename

    def slow(source: Path, target: Path) -> None:
        if moment == "before it is moved aside":
            store.put(b"content", "a.png")
        rename(source, target)
        if moment == "while it is aside":
            store.put(b"content", "a.png")

    monkeypatch.setattr(os, "rename", slow)
    remove(home)
    assert store.has(ref)


def test_beside_a_run_that_stores_and_takes_without_pause_nothing_is_lost(home: Home, store: Store) -> None:
    """The race as it is: old objects are wanted again by a run while prune goes round and round."""
    contents = [f"picture {number}".encode() for number in range(16)]
    lost: list[str] = []
    ended = threading.Event()

    def works() -> None:
        try:
            for turn in range(6):
                for number, content in enumerate(contents):
                    ref = store.put(content, "a.png")
                    os.sched_yield() if hasattr(os, "sched_yield") else None
                    if not store.has(ref):
                        lost.append(f"turn {turn}, object {number}")
                    target = blob(home, ref)
                    if number % 2 and target.exists():  # and it is old again, and nobody's
                        os.utime(target, (1, 1))
        finally:
            ended.set()

    run = threading.Thread(target=works)
    run.start()
    removed = 0
    while not ended.is_set():
        removed += len(remove(home))
    run.join()
    assert lost == []
    assert removed > 0, "prune found nothing to do, so nothing was tried"


def test_runs_in_the_homes_own_folder_are_known_without_a_note(home: Home, store: Store) -> None:
    folder = home.root / "runs" / "Old"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    assert [run.folder for run in known_runs.known_runs(home)] == [folder]


def test_the_size_of_a_run_is_its_folder_and_what_it_refers_to(home: Home, store: Store) -> None:
    ref = store.put(b"x" * 1000, "a.png")
    folder = run_folder(home, ref)
    [size] = run_sizes(home)
    assert (size.folder, size.objects) == (folder, 1000)
    assert size.own == (folder / "run.json").stat().st_size


def test_what_is_no_stage_s_is_nobody_s_to_remove(home: Home, store: Store, tmp_path: Path) -> None:
    store.put_result(KEY, ReportRecord(html=store.put(b"x", "x")))
    (home.state / KEY).mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    for place in (home.state / "mine", home.state / f"{OTHER}.bak", home.store / "results" / "mine", outside):
        place.mkdir(exist_ok=True)
        (place / "thesis.txt").write_text("years of work")
    for name in ("mine", "notes"):
        (home.store / "results" / f"{name}.json").write_text("{}")
    (home.state / OTHER).symlink_to(outside)
    for place in (home.state, home.store, outside):
        aged(place, 400)
    assert {item.path.name for item in leftovers(home, 30)} >= {KEY, f"{KEY}.json"}
    remove(home, 30)
    assert {path.name for path in home.state.iterdir()} == {"mine", f"{OTHER}.bak", OTHER}
    assert {path.name for path in (home.store / "results").iterdir()} == {"mine", "mine.json", "notes.json"}
    assert (outside / "thesis.txt").exists() and kinds(home, 30) == []


def test_nothing_goes_while_a_note_of_a_run_may_not_be_read(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.put(b"x", "x")
    store.put_result(KEY, ReportRecord(html=ref))
    run_folder(home, ref, (KEY,))
    [note] = home.known_runs.iterdir()
    readable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != note and readable(path, mode))
    with pytest.raises(BadInput, match=f"{note.name}: cannot be read, and says which results a run needs"):
        remove(home, 30)
