"""Pruning a store that machines share removes what no machine refers to, and nothing else, also while others work."""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from charengine import elsewhere
from charengine.machine import leases, shared
from charengine.machine.home import Home
from charengine.machine.known_runs import note_run
from charengine.machine.leases import InStore, lease
from charengine.records import Ref, ReportRecord
from charengine.run.handing_over import keep_picture
from charengine.services import prune_shared, sizes, sizes_shared
from charengine.services.prune import LOCKS, OBJECTS, PROGRESS, RESULTS, STATES
from charengine.services.prune_shared import leftovers, remove
from charengine.store import Store

KEY = "train-" + "0123456789" * 4
OTHER = "sheet-" + "9876543210" * 4
URL = "memory://studio/store"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """In memory, which counts as elsewhere; no folder is asked."""
    fsspec.filesystem("memory").store.clear()
    shared._opened.cache_clear()
    monkeypatch.setenv(shared.STORE, URL)
    monkeypatch.setattr(leases, "LOOK_EVERY", 0.02)
    found = shared.shared_store()
    assert found
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)  # runs are looked for in the work folder too
    return Home(tmp_path / "home").create()


def another_machine() -> Store:
    """The same store, as another machine has it open."""
    shared._opened.cache_clear()
    found = shared.shared_store()
    assert found
    return found


def aged(store: Store, days: float, place: str = "") -> None:
    """As if nobody had written what lies there since."""
    for path, file in [*store.fs.store.items()]:
        if path.startswith(f"{store.root}/{place}"):
            file.created = datetime.now(UTC) - timedelta(days=days)


def kinds(store: Store, home: Home, older_than: float | None = None) -> list[str]:
    return sorted(item.kind for item in leftovers(store, home, older_than))


def run_folder(home: Home, ref: Ref, keys: tuple[str, ...] = ()) -> Path:
    folder = home.root.parent / "elsewhere" / "Grisha"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"sheet": {"sha256": ref.sha256}}))
    note_run(home, folder, keys)
    return folder


def held_by_another_machine(store: Store, key: str) -> None:
    """A lease whose holder works on."""
    store.fs.pipe_file(f"{store.root}/locks/{key}.lock/{key}.lock.000003", b'{"host": "m2", "pid": 1, "free": false}')


def test_an_old_object_that_nothing_refers_to_goes_and_only_when_asked(home: Home, store: Store) -> None:
    orphan, wanted = store.put(b"orphan", "a.png"), store.put(b"wanted", "b.png")
    store.put_result(KEY, ReportRecord(html=wanted))
    aged(store, 2)
    young = store.put(b"young", "c.png")  # what refers to it may be written next
    [item] = leftovers(store, home)
    assert (item.kind, item.path.rpartition("/")[2], item.bytes) == (OBJECTS, orphan.sha256, 6)
    assert store.has(orphan)
    assert [gone.path for gone in remove(store, home)] == [item.path]
    assert not store.has(orphan) and store.has(wanted) and store.has(young)


def test_what_a_state_a_finished_cell_or_a_picture_that_waits_refers_to_stays(
    home: Home, store: Store, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save

    checkpoint, cell = store.put(b"checkpoint", "a"), store.put(b"cell", "b")
    facts = json.dumps({"checkpoints": [{"adapter": {"sha256": checkpoint.sha256}}]})
    state = save({"curve": torch.zeros(1)}, {"facts": facts})
    store.write_state(tmp_path / "state" / KEY, "state.safetensors", state)
    store.put_result(f"{OTHER}/100-0.5-7", ReportRecord(html=cell))
    picture = keep_picture(b"picture", "me.png", store)  # of a character that waits for longer than a day
    aged(store, 400)
    assert kinds(store, home) == [] and remove(store, home) == []
    assert all(store.has(ref) for ref in (checkpoint, cell, picture))


def test_what_a_run_s_folder_refers_to_stays_on_whichever_machine_it_is_until_that_one_says_that_it_is_gone(
    home: Home, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.put(b"sheet", "a.png")
    store.put_result(KEY, ReportRecord(html=ref))
    folder = run_folder(home, ref, (KEY,))
    aged(store, 400)
    there = Home(tmp_path / "m2" / "home").create()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "m2")
        assert kinds(store, there, older_than=30) == [] and remove(store, there, older_than=30) == []
        shutil.rmtree(folder)
        assert kinds(store, there, older_than=30) == []  # it cannot see that
    assert kinds(store, home, older_than=30) == [OBJECTS, RESULTS]
    assert {item.kind for item in remove(store, home, older_than=30)} == {OBJECTS, RESULTS}
    assert not store.has(ref) and not store.has_result(KEY)
    assert not [path for path in store.fs.find(f"{store.root}/known-runs")]


def test_a_folder_that_was_made_before_machines_noted_theirs_is_noted_before_anything_goes(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.put(b"sheet", "a.png")
    with monkeypatch.context() as patch:
        patch.delenv(shared.STORE)
        run_folder(home, ref)
    aged(store, 400)
    assert remove(store, home, older_than=30) == [] and store.has(ref)
    [note] = store.fs.find(f"{store.root}/known-runs")
    assert ref.sha256 in store.fs.cat_file(note).decode()


def test_old_results_and_states_go_by_age_and_are_as_new_once_they_are_used(
    home: Home, store: Store, tmp_path: Path
) -> None:
    old, used = store.put(b"old", "a.png"), store.put(b"used", "b.png")
    store.put_result(KEY, ReportRecord(html=old))
    store.put_result(OTHER, ReportRecord(html=used))
    store.write_state(tmp_path / "state" / f"{KEY}-smaller", "state.safetensors", b"")
    aged(store, 40)
    store.use(OTHER, "report-" + "1" * 40)
    assert kinds(store, home) == [PROGRESS]
    assert kinds(store, home, older_than=30) == [OBJECTS, RESULTS, STATES]
    assert {item.kind for item in remove(store, home, older_than=30)} == {OBJECTS, RESULTS, STATES}
    assert store.result(OTHER, ReportRecord) and store.has(used) and not store.has(old)


def test_nothing_old_goes_while_a_stage_is_made_on_any_machine(
    home: Home, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.put_result(KEY, ReportRecord(html=store.put(b"old", "a.png")))
    store.write_state(tmp_path / "state" / KEY, "state.safetensors", b"")
    aged(store, 40)
    held_by_another_machine(store, OTHER)
    assert RESULTS not in kinds(store, home, older_than=30)
    assert "left for another time" in caplog.text
    aged(store, 1, "locks")  # silent for a day: its holder is dead
    assert RESULTS in kinds(store, home, older_than=30)


def test_progress_of_a_finished_stage_goes_unless_its_lease_is_held(home: Home, store: Store, tmp_path: Path) -> None:
    ref = store.put(b"a", "a")
    for key in (KEY, OTHER):
        store.put_result(key, ReportRecord(html=ref))
        store.put_result(f"{key}/cell", ReportRecord(html=ref))
        store.write_state(tmp_path / "state" / key, "state.safetensors", b"12345678")
    held_by_another_machine(store, OTHER)
    assert kinds(store, home) == [PROGRESS] * 4
    assert {item.key for item in remove(store, home)} == {KEY}
    assert store.has_result(KEY) and not store.has_result(f"{KEY}/cell") and store.has_result(f"{OTHER}/cell")
    assert [path.split("/")[-2] for path in store.fs.find(f"{store.root}/state")] == [OTHER]


def test_free_leases_go_after_a_day_and_held_ones_stay(home: Home, store: Store) -> None:
    with lease(InStore(store, f"{KEY}.lock"), "x"):
        pass
    held_by_another_machine(store, OTHER)
    assert kinds(store, home) == []
    aged(store, 2, f"locks/{KEY}")
    [item] = remove(store, home)
    assert item.kind == LOCKS and KEY in item.path
    with lease(InStore(store, f"{KEY}.lock"), "x") as waited:
        assert not waited


def test_an_object_that_another_machine_wants_while_it_is_removed_is_there_afterwards(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.put(b"content", "a.png")
    aged(store, 2)
    there = another_machine()
    wants = threading.Thread(target=lambda: there.put(b"content", "a.png"))
    drop, written = store.drop_files, threading.Event()
    monkeypatch.setattr(there, "after_prune", lambda after=there.after_prune: (written.set(), after()))

    def drop_late(paths: list[str]) -> None:
        if any(ref.sha256 in path for path in paths):
            wants.start()
            assert written.wait(10)  # it was seen old, and is written anew before it is removed
        drop(paths)

    monkeypatch.setattr(store, "drop_files", drop_late)
    assert [item.kind for item in remove(store, home)] == [OBJECTS]
    wants.join(10)
    assert store.get(ref) == b"content"


def test_an_object_that_is_wanted_before_it_is_looked_at_again_stays(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.put(b"content", "a.png")
    aged(store, 2)
    alone = prune_shared._alone

    def late(of: Store) -> Any:
        another_machine().put(b"content", "a.png")
        return alone(of)

    monkeypatch.setattr(prune_shared, "_alone", late)
    assert remove(store, home) == [] and store.has(ref)


def test_beside_a_machine_that_stores_and_takes_without_pause_nothing_is_lost(home: Home, store: Store) -> None:
    """The race as it is: old objects are wanted again by a run while prune goes round and round."""
    there, lost, removed, ended = another_machine(), list[int](), list[str](), threading.Event()

    def works() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            ref = there.put(f"picture {number % 8}".encode(), "a.png")
            if not there.has(ref):
                lost.append(number)
            if number % 2:  # and it is old again, and nobody's
                aged(there, 2, f"sha256/{ref.sha256[:2]}/{ref.sha256}")

    run = threading.Thread(target=works)
    run.start()
    deadline = time.monotonic() + 60
    while len(removed) < 8 and time.monotonic() < deadline:
        removed += [item.path for item in remove(store, home)]
    ended.set()
    run.join()
    assert lost == []
    assert removed, "prune found nothing to do, so nothing was tried"


def test_ages_are_read_off_the_store_s_clock(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = store.put(b"orphan", "a.png")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 400 * 86_400)
    assert kinds(store, home, older_than=30) == [] and remove(store, home, older_than=30) == []
    assert store.has(ref)


def test_a_file_without_a_time_is_never_old(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = store.put(b"orphan", "a.png")
    monkeypatch.setattr(prune_shared, "written", lambda facts: 0.0)
    assert kinds(store, home, older_than=30) == [] and store.has(ref)


def test_a_record_that_the_server_could_not_give_is_asked_for_again_and_never_taken_for_none(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.put(b"wanted", "a.png")
    store.put_result(KEY, ReportRecord(html=ref))
    aged(store, 2)
    monkeypatch.setattr(elsewhere, "FIRST_PAUSE", 0.01)
    plain, errors = store.fs._fs.cat_file, [OSError("503 Slow Down"), TimeoutError()]

    def cat_file(path: str, **more: Any) -> Any:
        if "/results/" in path and errors:
            raise errors.pop()
        return plain(path, **more)

    monkeypatch.setattr(store.fs._fs, "cat_file", cat_file)
    assert remove(store, home) == [] and store.has(ref) and errors == []


def test_what_is_wanted_twice_in_half_a_day_is_written_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(b"content", "a.png")
    store.put_result(KEY, ReportRecord(html=store.put(b"page", "b.html")))
    store.now()  # which writes a file to hear it
    wrote: list[str] = []
    plain = store.fs._fs.pipe_file

    def pipe_file(path: str, data: bytes, **more: Any) -> None:
        wrote.append(path)
        plain(path, data, **more)

    monkeypatch.setattr(store.fs._fs, "pipe_file", pipe_file)
    store.put(b"content", "a.png")
    store.use(KEY)
    assert wrote == []
    aged(store, 0.6)
    store.put(b"content", "a.png")
    store.use(KEY)
    assert len(wrote) == 2


def test_sizes_of_the_store_and_of_each_run_in_it(home: Home, store: Store, tmp_path: Path) -> None:
    folder = run_folder(home, store.put(b"x" * 1000, "a.png"))
    store.put(b"y" * 2**20, "b.png")
    store.write_state(tmp_path / "state" / KEY, "state.safetensors", b"z" * 2**20)
    [size] = sizes.run_sizes(home)
    assert (size.folder, size.objects) == (folder, 1000)
    [line] = [line for line in sizes.describe(home) if line.startswith(URL)]
    assert line == f"{URL} 2.0 MiB (1.0 MiB in states of trainings)"


def test_sizes_that_take_too_long_are_said_not_to_be_counted(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder(home, store.put(b"x" * 1000, "a.png"))
    monkeypatch.setattr(sizes_shared, "SECONDS", 0.3)
    plain, forever = store.fs._fs.find, threading.Event()

    def find(path: str, **more: Any) -> Any:
        return plain(path, **more) if "sha256" not in path else forever.wait(60)

    monkeypatch.setattr(store.fs._fs, "find", find)
    began = time.monotonic()
    lines = sizes.describe(home)
    assert time.monotonic() - began < 5
    forever.set()
    [line] = [line for line in lines if line.startswith(URL)]
    assert "at least" in line and "the others not (it took longer than 0 s)" in line
    [run] = [line for line in lines if line.startswith("Grisha")]
    assert "not counted in the store" in run


def test_a_store_that_cannot_be_reached_is_said_not_to_be_counted(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(of: Home) -> Store:
        raise OSError("nobody listens\nmore")

    monkeypatch.setattr(sizes, "open_store", away)
    assert f"{URL} not counted (nobody listens)" in sizes.describe(home)
    assert os.environ[shared.STORE] == URL


def test_what_is_no_stage_s_is_nobody_s_to_remove(home: Home, store: Store) -> None:
    store.put_result(KEY, ReportRecord(html=store.put(b"x", "x")))
    theirs = [f"{store.root}/{place}" for place in ("state/mine/thesis.txt", "results/notes.json")]
    for path in theirs:
        store.fs.pipe_file(path, b"{}")
    aged(store, 400)
    remove(store, home, 30)
    assert store.result(KEY, ReportRecord) is None and all(store.fs.exists(path) for path in theirs)
