"""Files are whole or not there, and what a killed writer left goes."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from charengine import writing
from charengine.errors import BadInput
from charengine.records import ReportRecord
from charengine.store import Store
from charengine.writing import create_atomically, without_patience, write_atomically


def left_beside(path: Path, pid: int) -> Path:
    left = path.with_name(f".{path.name}.{writing._host()}-{pid}-0123abcd.tmp")
    left.write_bytes(b"half of")
    return left


def test_what_a_killed_writer_left_goes_with_the_next_writing_and_a_live_ones_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sheet.png"
    dead, alive = left_beside(path, 7777777), left_beside(path, os.getpid())
    others = tmp_path / ".sheet.png.ffffff-7777777-0123abcd.tmp"  # of another machine that shares the folder
    others.write_bytes(b"half of")
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert not dead.exists() and alive.exists() and others.exists()


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing.os, "fsync", full)
    monkeypatch.setattr(writing, "PATIENCE", 0.0)
    with pytest.raises(BadInput, match="No space left"):
        write_atomically(path, b"new")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("run.json", b"old")]


def test_a_file_that_is_there_is_not_created_again(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    create_atomically(path, b"mine")
    create_atomically(path, b"yours")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("claim.json", b"mine")]


def test_a_file_system_without_hard_links_does_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(writing.os, "link", no_links)
    create_atomically(tmp_path / "claim.json", b"mine")
    create_atomically(tmp_path / "claim.json", b"yours")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("claim.json", b"mine")]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited, in no time."""
    waited: list[float] = []
    begun = time.monotonic()
    monkeypatch.setattr(writing.time, "sleep", waited.append)
    monkeypatch.setattr(writing.time, "monotonic", lambda: begun + sum(waited))
    return waited


class Failing:
    """A call of the file system that fails so often first."""

    def __init__(self, call: Any, number: int, times: int) -> None:
        self.call, self.number, self.left = call, number, times

    def __call__(self, *args: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.call(*args)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize(
    ("call", "write"), [("fsync", write_atomically), ("replace", write_atomically), ("link", create_atomically)]
)
def test_what_may_pass_is_waited_for_said_once_and_the_file_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    caplog: Any,
    number: int,
    call: str,
    write: Any,
) -> None:
    monkeypatch.setattr(writing.os, call, Failing(getattr(os, call), number, 4))
    write(tmp_path / "state.safetensors", b"whole")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("state.safetensors", b"whole")]
    assert pauses == [0.25, 0.5, 1.0, 2.0]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and os.strerror(number) in said[0] and "going on" in said[1]


def test_a_disk_that_stays_full_is_given_up_after_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(writing.os, "fsync", Failing(os.fsync, errno.ENOSPC, 10**6))
    with pytest.raises(BadInput, match="No space left"):
        write_atomically(tmp_path / "a", b"x")
    assert writing.PATIENCE <= sum(pauses) < writing.PATIENCE + writing.LONGEST_PAUSE
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_pass_or_when_the_process_shall_end_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(writing.os, "fsync", Failing(os.fsync, errno.EROFS, 1))
    with pytest.raises(BadInput, match="Read-only"):
        write_atomically(tmp_path / "a", b"x")
    monkeypatch.setattr(writing.os, "fsync", Failing(os.fsync, errno.ENOSPC, 10))
    with without_patience(), pytest.raises(BadInput, match="No space"):
        write_atomically(tmp_path / "a", b"x")
    assert pauses == []


def test_a_store_whose_disk_does_not_answer_for_a_while_is_waited_for_and_nothing_is_taken_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    store = Store(tmp_path)
    ref = store.put(b"picture", "a.png")
    store.put_result("crop-1", ReportRecord(html=ref))
    monkeypatch.setattr(store.fs, "cat_file", Failing(store.fs.cat_file, errno.ESTALE, 3))
    assert store.has(ref)
    monkeypatch.setattr(store.fs, "cat_file", Failing(store.fs.cat_file, errno.EIO, 3))
    assert store.result("crop-1", ReportRecord) is not None
    assert pauses == [0.25, 0.5, 1.0] * 2
    assert store.result("crop-2", ReportRecord) is None and sum(pauses) == 3.5
