"""Files are whole or not there, and what a killed writer left goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from charengine import writing
from charengine.errors import BadInput
from charengine.writing import create_atomically, write_atomically


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
