"""What the engine wrote and nobody changed is its own to write again; everything else in a folder is somebody's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from run_samples import sample_run

from charengine.errors import BadInput
from charengine.machine.known_runs import CLAIM
from charengine.machine.ledger import LEDGER, begin, foreign, must_be_own, noted, overwriting, own, write_own
from charengine.run import folder as runs
from charengine.store import Store


def test_what_was_written_here_is_written_again_and_what_was_changed_is_not(tmp_path: Path) -> None:
    front, side = tmp_path / "front.png", tmp_path / "side.png"
    write_own(tmp_path, {front: b"1", side: b"1"})
    write_own(tmp_path, {front: b"2", side: b"2"})
    side.write_bytes(b"mine")
    with pytest.raises(
        BadInput, match=r"side\.png is not as Character Engine wrote it there, .*give another folder"
    ) as told:
        write_own(tmp_path, {front: b"3", side: b"3"})
    assert "front.png" not in str(told.value)
    assert (front.read_bytes(), side.read_bytes()) == (b"2", b"mine"), "none of them, where one is in the way"
    write_own(tmp_path, {front: b"3", side: b"mine"})
    assert front.read_bytes() == b"3", "what is the same already is in nobody's way"


def test_a_process_that_was_killed_between_its_note_and_its_file_is_no_stranger(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_own(tmp_path, {path: b"before"})
    own(tmp_path, {path: "0" * 64})  # and killed
    write_own(tmp_path, {path: b"after"})
    assert path.read_bytes() == b"after"


def test_of_a_torn_ledger_nothing_is_known(tmp_path: Path) -> None:
    write_own(tmp_path, {tmp_path / "a.png": b"1"})
    for torn in (b"", b"{", b"[1]", b'{"a.png": 5}', b"[" * 100_000):
        (tmp_path / LEDGER).write_bytes(torn)
        assert noted(tmp_path) == {}
        assert foreign([tmp_path / "a.png"], {}) == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("ledger", "told"),
    [
        (None, f"no {LEDGER} says that Character Engine wrote anything there"),
        ("NaN", f"the {LEDGER} that says what Character Engine wrote there is damaged"),
        ("{}", None),
    ],
)
def test_files_that_count_as_a_strangers_for_want_of_a_ledger_are_said_to(
    ledger: str | None, told: str | None, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    if ledger is not None:
        (tmp_path / LEDGER).write_text(ledger)
    (problem,) = overwriting([tmp_path / "a.png"], "--out", tmp_path)
    assert f"overwritten ({told}): give" in problem if told else "overwritten: give" in problem
    (mine,) = overwriting([tmp_path / "a.png"], "--out", tmp_path, inputs=[tmp_path / "a.png"])
    assert "overwritten: give" in mine, "what a command starts from is no matter of ledgers"


def test_a_folder_in_the_ledgers_place_is_said_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()
    (problem,) = overwriting([tmp_path / "a.png"], "--out", tmp_path)
    assert f"{LEDGER} is no file" in problem and "move it away" in problem


def test_a_folder_that_was_moved_and_linked_from_where_it_was_is_known(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    (run / "run.json").write_text('{"prompt": "an orc"}')
    write_own(run, {run / "views" / "front.png": b"1"})
    (run / "views").rename(tmp_path / "elsewhere")
    (run / "views").symlink_to(tmp_path / "elsewhere")
    assert foreign([run / "views" / "front.png"], {}) == []
    (tmp_path / "elsewhere" / "front.png").write_bytes(b"2")
    assert foreign([run / "views" / "front.png"], {}) == [run / "views" / "front.png"]


def test_folders_links_and_devices_in_the_way_are_not_the_engines(tmp_path: Path) -> None:
    names = ("folder.png", "broken.png", "pipe.png")
    (tmp_path / names[0]).mkdir()
    (tmp_path / names[1]).symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / names[2])
    assert foreign([tmp_path / name for name in names], {}) == [tmp_path / name for name in names]


def test_a_file_that_the_command_reads_is_never_written_over_though_the_engine_made_it(tmp_path: Path) -> None:
    path = tmp_path / "zorga.safetensors"
    write_own(tmp_path, {path: b"1"})
    assert overwriting([path], "--out", tmp_path) == []
    [problem] = overwriting([path], "--out", tmp_path, [tmp_path / "x" / ".." / "zorga.safetensors"])
    assert problem.startswith(f"--out {tmp_path}: zorga.safetensors is what this command starts from")


def test_a_message_names_the_first_files_and_how_many_more(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        path.touch()
    with pytest.raises(BadInput, match=r"0\.png, 1\.png, 2\.png and 2 more are not as"):
        must_be_own(tmp_path, paths)


def test_the_files_of_a_run_stay_its_own_when_its_folder_is_moved(tmp_path: Path) -> None:
    begin(tmp_path / "a")
    (tmp_path / "a" / CLAIM).write_text('{"name": "Ada", "prompt": "an orc"}')
    write_own(tmp_path / "a" / "views", {tmp_path / "a" / "views" / "front.png": b"1"})
    assert not (tmp_path / "a" / "views" / LEDGER).exists()
    (tmp_path / "a").rename(tmp_path / "b")
    assert foreign([tmp_path / "b" / "views" / "front.png"], {}) == []


@pytest.fixture
def old(store: Store, tmp_path: Path) -> Path:
    """A run's folder as a version without ledgers left it."""
    run, out = sample_run(store), tmp_path / "zorga"
    runs.write_sheet(run.sheet, out, store)
    runs.write_views(run.dataset.views, out / "views", store)
    (out / "report.html").write_text("page")
    (out / "run.json").write_text(run.model_dump_json())
    for ledger in out.rglob(LEDGER):
        ledger.unlink()
    return out


def test_a_run_of_an_earlier_version_is_written_again_but_for_pictures_that_were_changed(old: Path) -> None:
    paths = [old / name for name in ("sheet.png", "views/front.png", "report.html", "run.json")]
    assert foreign(paths, {}) == []
    (old / "views" / "front.png").write_bytes(b"painted over")
    assert foreign(paths, {}) == [old / "views" / "front.png"]
    write_own(old, {old / "sheet.png": b"new"})
    assert foreign(paths, {}) == [old / "views" / "front.png"], "and is remembered from then on"


def test_a_run_of_an_earlier_version_that_was_stopped_goes_on(tmp_path: Path) -> None:
    (tmp_path / CLAIM).write_text('{"name": "Ada", "prompt": "an orc"}')
    (tmp_path / "sheet.png").write_bytes(b"drawn")
    begin(tmp_path)
    assert foreign([tmp_path / "sheet.png"], {}) == []


@pytest.mark.parametrize("record", ["run.json", "sweep.json", "expansion.json"])
def test_a_record_of_another_program_makes_no_file_the_engines(tmp_path: Path, record: str) -> None:
    (tmp_path / record).write_text(json.dumps({"name": "somebody's"}))
    for name in ("sheet.png", "report.html"):
        (tmp_path / name).write_bytes(b"mine")
    mine = [tmp_path / name for name in ("sheet.png", "report.html", record)]
    assert foreign(mine, {}) == mine
    begin(tmp_path)
    assert foreign(mine, {}) == mine
