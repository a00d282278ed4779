"""Nights full of faults: a cast on workers, kills, power cuts, a failing disk, servers that are away, a clock that is set; all is well in the morning.

A night that fails names its seed: `python -m nights.night SEED` in tests/ tells it again, step by step.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nights.night import Night, Plan, nights, simulated, undisturbed

SHORT, LONG = 60, 10_000  # what they found stands in docs/howto/kills.md
FIRST = int(os.environ.get("NIGHTS_FROM", "1"))  # a seed; a part of the long run on each of several machines


def failures(seeds: range) -> list[str]:
    with simulated() as use:
        expected = undisturbed(use)
        found = [(night.seed, error) for night, error in nights(seeds, expected, use) if error is not None]
    return [f"seed {seed}: {error}" for seed, error in found]


def test_whatever_fails_at_night_all_is_made_once_and_told_once_in_the_morning() -> None:
    assert failures(range(FIRST, FIRST + SHORT)) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_nights() -> None:
    assert failures(range(FIRST, FIRST + LONG)) == []


def test_the_same_seed_is_the_same_night() -> None:
    told = []
    with simulated() as use:
        for _ in range(2):
            night = Night(81)
            use(night)
            night.run()
            told.append((night.told, night.schedule.steps, sorted(night.disk.files)))
    assert told[0] == told[1]


def test_power_that_fails_takes_what_was_not_synced() -> None:
    """The disk below the nights is as bad as promised: a file that is renamed without fsync can come back torn."""
    kept = set()
    with simulated() as use:
        for seed in range(40):
            night = Night(seed, Plan())
            use(night)
            path = Path("/night/home/file")
            night.disk.folders.add("/night/home")
            with open(path.with_suffix(".new"), "wb") as file:
                file.write(b"all of it")
            path.with_suffix(".new").replace(path)
            night.disk.lose_power()
            kept.add(path.read_bytes() if path.exists() else None)
    assert {b"all of it", b"", None} < kept


def test_power_that_fails_leaves_what_was_synced_before_more_was_appended() -> None:
    kept = set()
    with simulated() as use:
        for seed in range(40):
            night = Night(seed, Plan())
            use(night)
            path = Path("/night/file")
            with open(path, "a") as file:
                file.write("synced")
                file.flush()
                os.fsync(file.fileno())
                file.write(" more")
            night.disk.lose_power()
            kept.add(path.read_bytes())
    assert all(data.startswith(b"synced") for data in kept) and {b"synced", b"synced more"} < kept
