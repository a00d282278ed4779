"""Leases hold between machines, run out with their holder, and trust nobody's clock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest

from charengine.errors import BadInput
from charengine.machine import leases
from charengine.machine.leases import InFolder, InStore, Seen, latest, lease, lease_if_free
from charengine.machine.locks import if_free, single_flight, single_flight_at_home
from charengine.machine.shared import shared_store
from charengine.store import Store

HOLD = (
    "import sys, time; from pathlib import Path; from charengine.machine import leases\n"
    "leases.this_host = lambda: sys.argv[2]\n"
    "with leases.lease(leases.InFolder(Path(sys.argv[1])), 'x'):\n    print('held', flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setattr(leases, "EXPIRY", 1.0)
    monkeypatch.setattr(leases, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(leases, "_asked_for", {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "train-0.lock"


def holder(path: Path, host: str) -> subprocess.Popen[str]:
    """A process on a machine of this name that holds the lease."""
    made = subprocess.Popen([sys.executable, "-c", HOLD, str(path), host], stdout=subprocess.PIPE, text=True)
    assert made.stdout and made.stdout.readline() == "held\n"
    return made


def test_a_lease_is_held_by_one_of_many_at_a_time(path: Path) -> None:
    inside, most, done = [0], [0], list[int]()

    def works(number: int) -> None:
        for _ in range(3):
            with lease(InFolder(path), "x"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.005)
                inside[0] -= 1
                done.append(number)

    threads = [threading.Thread(target=works, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], len(done)) == (1, 15)
    assert len(list(path.parent.iterdir())) <= leases.KEPT + 1, "numbers that are used up go"


@pytest.mark.timeout(60)  # a lease that never runs out is waited for without end
def test_a_holder_killed_on_another_machine_is_followed_when_its_lease_has_run_out(path: Path) -> None:
    other = holder(path, "another machine")
    other.kill()
    other.communicate()
    started = time.monotonic()
    with lease(InFolder(path), "x") as waited:
        assert waited
    assert leases.EXPIRY <= time.monotonic() - started < 20


def test_a_holder_killed_on_this_machine_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 1e6)
    other = holder(path, leases.this_host())
    other.kill()
    other.communicate()
    with lease(InFolder(path), "x") as waited:
        assert not waited


def test_a_live_holder_keeps_its_lease_for_longer_than_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "is_running", lambda pid: pytest.fail("it may be on another machine"))
    monkeypatch.setattr(leases, "this_host", iter_hosts())
    with lease(InFolder(path), "x"):
        seen, until = leases.Seen(), time.monotonic() + 2.5 * leases.EXPIRY
        while time.monotonic() < until:
            seen.look(InFolder(path))
            assert not seen.takeable
            time.sleep(0.02)


def iter_hosts() -> object:
    """Another machine at every call."""
    numbers = iter(range(10**9))
    return lambda: f"machine {next(numbers)}"


@pytest.mark.parametrize("by", [-1e6, 1e6])
def test_clocks_that_are_wrong_hand_no_lease_over(path: Path, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + by)
    with lease(InFolder(path), "x"):
        file = InFolder(path)._file(1)
        os.utime(file, (real() + by, real() + by))
        monkeypatch.setattr(leases, "this_host", lambda: "another machine")
        with lease_if_free(InFolder(path)) as free:
            assert not free


def test_of_many_that_find_it_run_out_one_takes_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    InFolder(path)._file(4).write_bytes(b"cut off")
    monkeypatch.setattr(leases, "EXPIRY", 0.0)
    started = threading.Barrier(8)
    won: list[int] = []

    def takes() -> None:
        started.wait()
        won.append(leases._taken(InFolder(path), 5))

    threads = [threading.Thread(target=takes) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [0] * 7 + [5]


def test_a_number_used_up_long_ago_is_not_the_lease(path: Path) -> None:
    path.parent.mkdir()
    InFolder(path)._file(20).write_bytes(b"{}")
    assert leases._taken(InFolder(path), 3) == 0
    assert latest(InFolder(path)) == (20, b"{}") and not InFolder(path)._file(3).exists()


def test_who_stood_still_for_too_long_says_so_and_gives_back_nothing_of_the_new_holders(path: Path, caplog) -> None:
    with lease(InFolder(path), "x"):
        leases.create_atomically(InFolder(path)._file(2), b'{"free": false}')
        time.sleep(0.3)
    assert "taken over" in caplog.text
    assert latest(InFolder(path)) == (2, b'{"free": false}')


def test_a_variable_decides_which_locks_are_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARENGINE_LOCKS", "lease")
    with single_flight(path, "x") as waited, if_free(path) as free:
        assert (waited, free, latest(InFolder(path))[0]) == (False, False, 1)
    with if_free(path) as free:
        assert free
    monkeypatch.setenv("CHARENGINE_LOCKS", "redis")
    with pytest.raises(BadInput, match="flock"), single_flight(path, "x"):
        pass


@pytest.fixture
def in_store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in memory, which counts as one on another machine."""
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setenv("CHARENGINE_STORE", "memory://studio/store")
    found = shared_store()
    assert found
    return found


def test_a_lease_in_a_store_is_held_by_one_of_many_at_a_time(in_store: Store) -> None:
    inside, most = [0], [0]

    def works() -> None:
        for _ in range(3):
            with lease(InStore(in_store, "train-0.lock"), "x"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.005)
                inside[0] -= 1

    threads = [threading.Thread(target=works) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(InStore(in_store, "train-0.lock").numbers()) == leases.KEPT


def test_machines_that_share_a_store_lock_in_it_and_what_is_of_a_home_stays_there(
    in_store: Store, tmp_path: Path
) -> None:
    with single_flight(tmp_path / "m1" / "train-0.lock", "x"), if_free(tmp_path / "m2" / "train-0.lock") as free:
        assert not free
    with (
        single_flight_at_home(tmp_path / "m1" / "journal.lock", "x"),
        if_free(tmp_path / "m2" / "journal.lock") as free,
    ):
        assert free


def test_while_the_store_is_away_no_lease_runs_out(in_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that cannot be heard is not gone: the waiter counts from when the store answers again."""
    place = InStore(in_store, "train-0.lock")
    place.create(1, b'{"host": "m2", "free": false}')
    seen = Seen()
    seen.look(place)
    monkeypatch.setattr(leases, "PROMPT", 0.1)
    numbers = place.numbers

    def after_an_outage() -> list[int]:
        time.sleep(leases.EXPIRY + 0.1)
        return numbers()

    monkeypatch.setattr(place, "numbers", after_an_outage)
    seen.look(place)
    assert not seen.takeable


def test_a_folder_is_no_store_that_machines_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHARENGINE_STORE", str(tmp_path))
    with pytest.raises(BadInput, match="CHARENGINE_HOME"):
        shared_store()


def test_a_lease_that_a_dead_machine_held_is_free_for_who_asks_again_when_it_has_run_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not wait for it would otherwise see it for the first time each time, and for ever take it for held."""
    killed = holder(path, "another machine")
    killed.kill()
    killed.communicate()
    with lease_if_free(InFolder(path), make=True) as free:
        assert not free
    time.sleep(leases.EXPIRY + 0.2)
    with lease_if_free(InFolder(path), make=True) as free:
        assert free
