"""Whatever lies in the home: what cannot be read is passed over or named with a remedy; nothing ends in a traceback or is waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import save

from charengine.errors import BadInput
from charengine.machine import home as home_module
from charengine.machine.addresses import running_services
from charengine.machine.databases import database_problem
from charengine.machine.home import Home
from charengine.machine.known_runs import RECORDS, known_runs, note_run, records_of
from charengine.machine.leases import is_given_back
from charengine.machine.locks import flocked, if_free
from charengine.machine.memories import remember
from charengine.models.files import fingerprint
from charengine.run.claim import CLAIM, owner_of
from charengine.run.folder import MARKER, edited_captions
from charengine.services.children import REMEMBERED, Children
from charengine.services.prune import leftovers
from charengine.services.sizes import describe
from charengine.services.up import PORTS, remembered_ports, services
from charengine.stages.train import lessons, state
from charengine.tracking.database import initialise_database
from charengine.tracking.journal import JournalTracker
from charengine.tracking.open_tracker import open_tracker

DEEP = "[" * 100_000
DAMAGED = {
    "list": b"[]",
    "null": b"null",
    "number": b"5",
    "pids": b'[null, "x", 1e99, true]',
    "deep": DEEP.encode(),
    "deep-object": b'{"a": ' + DEEP.encode(),
    "not-utf8": b"\xff\xfe{",
    "torn": b'{"pid": ',
    "kinds": b'{"pid": null, "prefect_api": 5, "folder": 7, "keys": 5, "prompt": [], "prefect": "x", "mlflow": 99999, "captions": 4}',
    "addresses": b'{"pid": 1, "prefect_api": null, "mlflow": [5]}',
    "folder": None,
    "pipe": None,
}


@pytest.fixture(autouse=True)
def _runs_are_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def damage(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = DAMAGED[kind]
    if data is not None:
        path.write_bytes(data)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_small_file_that_is_damaged_counts_as_not_there(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("charengine.machine.addresses.answers", lambda *_: True)
    out = tmp_path / "out"
    notes = home.known_runs / "a.json", out / CLAIM, out / "dataset" / MARKER, home.logs / REMEMBERED
    for path in (home.services_file, home.ports_file, *notes):
        damage(path, kind)
    assert running_services(home) is None
    assert remembered_ports(home) == PORTS
    assert known_runs(home) == []
    assert owner_of(out) is None
    assert edited_captions(out) == set()
    Children(home.logs).end_left(home.root)
    assert not is_given_back(DAMAGED[kind] or b"")


def test_a_note_of_a_folder_that_no_system_can_be_asked_about_stands_in_no_other_runs_way(
    home: Home, tmp_path: Path
) -> None:
    (tmp_path / "good").mkdir()
    note_run(home, tmp_path / "good", ["sheet-" + "0" * 40])
    for number, folder in enumerate(("/x\0y", "/" + "x" * 5000, "/x\ud800", "here")):
        note = {"folder": folder, "keys": ["\ud800"]}
        (home.known_runs / f"{number}.json").write_text(json.dumps(note), encoding="utf-8")
    (home.known_runs / "keys.json").write_text(json.dumps({"folder": "/x", "keys": 5}), encoding="utf-8")
    assert {(str(run.folder), len(run.keys)) for run in known_runs(home)} == {(str(tmp_path / "good"), 1), ("/x", 0)}
    assert leftovers(home) == [] and describe(home)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_record_that_is_no_file_is_none(home: Home, tmp_path: Path, kind: str) -> None:
    for place, other in (RECORDS, RECORDS[::-1]):
        damage(tmp_path / "runs" / place / place, kind)
        (tmp_path / "runs" / place / other).write_text("{}")
    assert [text for run in known_runs(home) for text in records_of(run)] == [b"{}", b"{}"]
    assert leftovers(home) == [] and describe(home)


@pytest.mark.parametrize("start", [b"\xff" * 16, b"\xff" * 7 + b"\0" + b"x" * 90, (2**40).to_bytes(8, "little"), b""])
def test_a_torn_state_of_a_training_says_no_length_that_is_read(home: Home, start: bytes) -> None:
    place = home.state / f"train-{'a' * 40}"
    place.mkdir(parents=True)
    (place / "state.safetensors").write_bytes(start)
    assert leftovers(home) == []


@pytest.mark.parametrize("facts", [DEEP, "[]", "5", '{"format": 1, "key": "k"}', "{"])
def test_a_state_whose_facts_are_damaged_begins_anew(tmp_path: Path, facts: str) -> None:
    told = {"facts": facts, "key": "k", "machine": facts}
    for name in (state.FILE, lessons.FILE):
        (tmp_path / name).write_bytes(save({"curve": torch.zeros(3, 1)}, told))
    assert state.load_state(tmp_path, "k") is None
    assert state.saved_machines(tmp_path, "k") == []
    assert lessons.drawn_on(tmp_path, "k") == ([] if not facts.endswith("}") else [json.loads(facts)])


def test_what_is_remembered_of_a_file_and_is_no_digest_is_found_out_again(tmp_path: Path) -> None:
    weights, memory = tmp_path / "a.safetensors", tmp_path / "fingerprints.json"
    weights.write_bytes(b"x")
    right = fingerprint([weights], memory)
    (key,) = json.loads(memory.read_text())
    remember(memory, {key: ["no", "digest"]})
    assert fingerprint([weights], memory) == right


@pytest.mark.parametrize("name", home_module.FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_named_before_anything_is_made(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / "home")
    path = home.root / name
    path.parent.mkdir(parents=True)
    for make in (path.touch, lambda: path.symlink_to(tmp_path / "nothing")):
        make()
        with pytest.raises(
            BadInput, match=f"{path}: the home keeps a folder there, .*move it away, or set CHARENGINE_HOME"
        ):
            home.create()
        path.unlink()
    assert not (home.root / "keys").exists()
    home.create()


@pytest.mark.parametrize("name", [*home_module.FILES, "locks/run-1.lock", "store/results/report-1.json"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / "home").create()
    path = home.root / name
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    with pytest.raises(BadInput, match=f"{path}: the home keeps a file there"):
        home.create()
    path.rmdir()
    path.symlink_to(tmp_path / "not-yet")  # as a home on several disks has it
    home.create()


def test_run_and_doctor_say_alike_what_is_wrong_in_the_home(
    home: Home, cli: Callable[..., CompletedProcess[str]]
) -> None:
    wrong = [home.known_runs, home.root / "inbox", home.store / "results"]
    for path in wrong:
        path.touch()
    (home.mlflow / "mlflow.db").unlink()
    (home.mlflow / "mlflow.db").mkdir()
    ran, looked = cli("run", "an orc"), cli("doctor")
    assert ran.returncode == 2 and looked.returncode == 3, (ran.stderr, looked.stdout)
    for path in [*wrong, home.mlflow / "mlflow.db"]:
        assert f"{path}: the home keeps a " in ran.stderr and f"{path}: the home keeps a " in looked.stdout


def test_a_lock_that_is_a_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run-1.lock"
    path.mkdir()
    for held in (flocked(path, "x"), if_free(path), if_free(path, make=True)):
        with pytest.raises(BadInput, match=f"{path} is a folder where a lock's file belongs: move it away"), held:
            pass


@pytest.mark.parametrize("name", ["folder", "torn"])
def test_a_database_that_cannot_be_opened_is_told_at_once(
    home: Home, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = home.mlflow / "mlflow.db"
    assert database_problem(path) == "" == database_problem(home.mlflow / "none.db")
    path.unlink()
    damage(path, "folder") if name == "folder" else path.write_bytes(b"no database" * 1000)
    assert any(home.mlflow.glob("schema-*"))  # it was made before, and well
    with pytest.raises(BadInput, match=f"database {path}: .*; move it away, and a new one is made"):
        initialise_database(home)
    tracker = open_tracker(home, project="x", name="x", key="x", params={}, tags={})
    assert isinstance(tracker, JournalTracker) and "move it away" in caplog.text
    path.rmdir() if name == "folder" else path.unlink()
    initialise_database(home)
    assert path.is_file() and database_problem(path) == ""


def test_up_names_what_would_end_its_servers(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    database = home.prefect / "prefect.db"
    database.write_bytes(b"no database" * 1000)
    monkeypatch.setenv("PREFECT_HOME", str(home.prefect))
    with pytest.raises(BadInput, match=f"database {database}: .*move it away"), services(home, lambda: True):
        pass
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "nope")
    with (
        pytest.raises(BadInput, match="PREFECT_LOGGING_LEVEL=nope: Prefect cannot read it"),
        services(home, lambda: True),
    ):
        pass


def test_what_the_machine_says_of_a_path_is_no_defect(
    home: Home, cli: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.root / "odd").mkdir()
    monkeypatch.setattr("charengine.services.prune.leftovers", lambda *_: (home.root / "odd").read_bytes())
    done = cli("prune")
    assert done.returncode == 2 and f"{home.root / 'odd'}: cannot be read or written (Is a directory)" in done.stderr
    assert "CHARENGINE_HOME" in done.stderr
