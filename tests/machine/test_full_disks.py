"""A disk that fills while something is made: said once, never waited for longer than it helps, and told as what it is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charengine.errors import BadInput
from charengine.machine import full_disks, places
from charengine.machine.error_log import keep_traceback
from charengine.machine.home import Home
from charengine.machine.places import full_disk
from charengine.store import Store
from charengine.tracking import spool
from charengine.tracking.attempts import Attempts
from charengine.tracking.journal import Journal, JournalTracker
from charengine.tracking.spool import MetricSpool, Point
from charengine.writing import write_atomically

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


class Disk:
    """A disk that takes nothing while it is full; who waits for it is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.waited = True, list[float]()
        really, fsync = shutil.disk_usage, os.fsync

        def syncing(handle: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        monkeypatch.setattr(
            places.shutil, "disk_usage", lambda place: really(place)._replace(free=0 if self.full else 2**33)
        )
        monkeypatch.setattr(os, "fsync", syncing)
        monkeypatch.setattr("time.sleep", self.waited.append)
        monkeypatch.setattr(full_disks, "_said", {})


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def refuse(*_: object) -> Any:
    raise RuntimeError("(sqlite3.OperationalError) database or disk is full")


def test_whatever_fails_at_a_full_disk_is_one_line_that_is_true(
    disk: Disk, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricSpool(home.mlflow / "spool", refuse)
    metrics.add("run", {"loss": 0.5}, 1)
    metrics.submit("picture", refuse)
    assert not metrics.drain("run", ended="FAILED")
    Attempts(home.mlflow).attempt("closing", refuse)
    JournalTracker(Journal(home.mlflow / "journal"), "Mone", "run-1", None, {}, {}).finish("FAILED")
    metrics.close()
    (line,) = caplog.messages
    assert "is full: free some space" in line and str(home.root) in line and "wait in" not in line
    disk.full = False
    Attempts(home.mlflow).attempt("closing", refuse)
    assert "closing failed" in caplog.messages[-1]


def test_what_the_disk_did_not_take_is_not_said_to_wait_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "DISK_PAUSES", (0.0,))
    metrics = MetricSpool(tmp_path / "spool", refuse)
    (tmp_path / "spool" / "run.jsonl").mkdir()  # in the place of the file
    metrics.add("run", {"loss": 0.5}, 1)
    assert not metrics.drain("run")
    metrics.close()
    assert "neither MLflow nor the disk took" in caplog.messages[-1] and "wait in" not in caplog.text


@pytest.mark.parametrize(("ended", "waits"), [("FAILED", 0), ("KILLED", 0), ("FINISHED", 3)])
def test_a_run_that_failed_or_was_stopped_does_not_wait_for_a_full_disk(
    disk: Disk, home: Home, ended: Any, waits: int
) -> None:
    metrics = MetricSpool(home.mlflow / "spool", refuse)
    metrics.add("run", {"loss": 0.5}, 1)
    metrics.drain("run", ended=ended)
    metrics.close()
    assert len(disk.waited) == waits
    JournalTracker(Journal(home.mlflow / "journal"), "Mone", "run-1", None, {}, {}).finish(ended)
    assert len(disk.waited) == 2 * waits


def test_a_disk_that_recovers_while_it_is_waited_for_has_all(disk: Disk, home: Home) -> None:
    tracker = JournalTracker(Journal(home.mlflow / "journal"), "Mone", "run-1", None, {}, {})
    disk.full = False
    tracker.sync()
    (kept,) = (home.mlflow / "journal").glob("*.jsonl")
    assert '"open"' in kept.read_text() and disk.waited == []


def test_an_error_at_a_full_disk_leaves_no_line_of_its_own(
    disk: Disk, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def writing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", writing)
    error = BadInput("cannot write")
    assert [keep_traceback(error, home) for _ in range(2)] == [None, None]
    (line,) = caplog.messages
    assert "is full" in line and "traceback" not in line


def test_a_file_that_does_not_fit_is_refused_with_what_to_do(disk: Disk, tmp_path: Path) -> None:
    for write in (write_atomically, lambda path, data: Store(tmp_path).write_state(path.parent, path.name, data)):
        with pytest.raises(BadInput, match="No space left on device; free some space and give the same command again"):
            write(tmp_path / "state" / "file", b"data")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_full_disk_that_is_not_the_homes_is_no_defect(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "page.html"))

    monkeypatch.setattr("charengine.services.prune.leftovers", failing)
    done = cli("prune")
    assert done.returncode == 2 and f"{tmp_path}/page.html: No space left" in done.stderr, done.stderr
    assert not full_disk(tmp_path) and "free some space" in done.stderr and "defect" not in done.stderr


def test_points_are_kept_in_order_by_a_disk_that_has_room_again(disk: Disk, tmp_path: Path) -> None:
    sent: list[Point] = []
    metrics = MetricSpool(tmp_path, lambda run_id, points: sent.extend(points))
    metrics.add("run", {"loss": 0.5}, 1)
    assert not metrics.sync("run", ())
    disk.full = False
    assert metrics.sync("run", ())
    metrics.close()


def test_a_full_disk_of_prefects_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disks, "full_disk", lambda place: f"{place} is full" if place.name == "elsewhere" else "")
    refused = RuntimeError("Server error '507 Insufficient Storage'")
    assert full_disks.fullness(refused, Home(tmp_path)) == ""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "elsewhere"))
    assert full_disks.fullness(refused, Home(tmp_path)) == f"{tmp_path / 'elsewhere'} is full"
