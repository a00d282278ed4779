"""Logs begin anew when they are large, and lose nothing that was written before."""

from __future__ import annotations

from pathlib import Path

from charengine.machine import logs
from charengine.machine.logs import forget_old_tracebacks, rotate


def test_a_large_log_is_copied_aside_and_its_writer_goes_on_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "worker-0.log"
    with path.open("ab", buffering=0) as writer:
        for part in range(6):
            writer.write(b"%d" % part * 100)
            assert not rotate(path, largest=200)
            writer.write(b"%d" % part * 100)
            assert rotate(path, largest=200)
            assert path.stat().st_size == 0
        writer.write(b"last")
    assert path.read_bytes() == b"last"
    parts = {each.name: each.read_bytes()[:1] for each in tmp_path.iterdir() if each != path}
    assert parts == {"worker-0.log.1": b"5", "worker-0.log.2": b"4", "worker-0.log.3": b"3"}


def test_a_log_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert not rotate(tmp_path / "none.log", 0)


def test_the_newest_tracebacks_are_kept(tmp_path: Path) -> None:
    for number in range(logs.TRACEBACKS_KEPT + 5):
        (tmp_path / f"error-20261129-{number:06d}.log").touch()
    (tmp_path / "worker-0.log").touch()
    forget_old_tracebacks(tmp_path)
    left = sorted(path.name for path in tmp_path.glob("error-*"))
    assert len(left) == logs.TRACEBACKS_KEPT and left[0] == "error-20261129-000005.log"
    assert (tmp_path / "worker-0.log").exists()
